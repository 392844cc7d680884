"""Claim 7: adaptive gradient clipping raises the largest stable learning rate.

Source: NFNet paper, section 4.1.

Contrast, written down before the run: at the largest batch, the largest stable rate with the smallest threshold against
that without clipping. It is in doublings, paired by seed. The run chooses nothing else. Seeds are counted, because the
trainings of one seed are not independent. For the figure and the table, a window of rates is fitted to all trainings of
a cell.

Table:
    table: One row per training. Columns arm (NF, NF+AGC), batch_size, lr, clip, seed, failed.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.boundary import largest_by_seed, shift, stable_window
from workbench.lab.statistics.failure_line import over_lines
from workbench.lab.statistics.intervals import difference_p, t_interval, with_ci
from workbench.lab.statistics.panels import draw_by_line
from workbench.lab.statistics.preconditions import FAILURES, some_fail
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim("Clipping raises the largest stable learning rate", precondition=FAILURES, number=7, unit="doublings")


def windows(table: pd.DataFrame) -> pd.DataFrame:
    """Fit the stable window of each batch size and threshold.

    Returns:
        One row per cell. Columns batch_size, clip (NaN: no clipping), window.
    """
    rows = []
    for (batch, clip), cell in table.groupby(["batch_size", "clip"], dropna=False):
        rows.append({"batch_size": batch, "clip": clip, "window": stable_window(cell.lr, cell.failed)})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Write the stable window of each batch and threshold as text, with 95 % intervals."""
    rows = []
    for _, row in windows(table).iterrows():
        window = row.window
        rows.append(
            {
                "batch_size": row.batch_size,
                "threshold": "none" if np.isnan(row["clip"]) else f"{row['clip']:g}",
                "largest stable rate": f"{window.largest:.2g}",
                "smallest stable rate": f"{window.smallest:.2g}",
                "trainings": window.largest.n,
                "a window fits (p)": f"{window.deviance_p:.2g}",
            }
        )
    return pd.DataFrame(rows)


def judge(table: pd.DataFrame) -> Verdict:
    """Judge at every failure line whether the largest stable rate is higher with clipping."""
    largest_batch = table[table.batch_size == table.batch_size.max()]
    return over_lines(_at_line, table).on(some_fail(CLAIM.precondition, largest_batch, "NF", "NF+AGC"))


def _at_line(table: pd.DataFrame) -> Verdict:
    largest_batch = table[table.batch_size == table.batch_size.max()]
    if (undecided := nothing_to_compare(largest_batch, "NF", "NF+AGC")) is not None:
        return undecided
    difference = _doublings(largest_batch, largest_batch["clip"].min())
    raised, p = t_interval(difference), difference_p(difference)
    effect = Effect("doublings of the largest stable rate through clipping", raised, p)
    holds = None if not p < 0.05 else bool(raised.mean > 0)
    relation = {True: "tolerates learning rates", False: "tolerates only learning rates",
                None: "is not shown to tolerate other learning rates:"}[holds]  # fmt: skip
    ratio = with_ci(raised.map(np.exp2), " times those of NF", ".1f" if raised.mean < 3 else ".0f")
    headline = f"NF+AGC {relation} {ratio}."
    return Verdict(holds, effect, headline, _details(table))


def _details(table: pd.DataFrame) -> pd.DataFrame:
    """One row per batch and threshold: the largest stable rate, and how much clipping raises it.

    `largest` is fitted. `doublings` compares with and without clipping seed by seed, `doublings_fitted` from all
    trainings together. `seeds_beyond` failed at all rates or at none. If `p_fit` is below 0.01, no window of rates
    describes the outcomes.
    """
    rows = []
    for batch, cells in windows(table).groupby("batch_size"):
        at = table[table.batch_size == batch]
        unclipped = next((w for clip, w in zip(cells["clip"], cells.window, strict=True) if np.isnan(clip)), None)
        for clip, window in zip(cells["clip"], cells.window, strict=True):
            row = {"threshold": _threshold_text(clip), "batch_size": batch, "largest": window.largest.mean,
                   "largest_low": window.largest.low, "largest_high": window.largest.high}  # fmt: skip
            if unclipped is not None and not np.isnan(clip):
                raised = t_interval(_doublings(at, clip))
                row |= {"doublings": raised.mean, "low": raised.low, "high": raised.high,
                        "doublings_fitted": shift(window, unclipped)[0].mean}  # fmt: skip
            failed_shares = at[_same(at["clip"], clip)].groupby("seed").failed.mean()
            beyond = int(failed_shares.isin([0, 1]).sum())
            rows.append(row | {"seeds": len(failed_shares), "seeds_beyond": beyond, "p_fit": window.deviance_p})
    return pd.DataFrame(rows)


def _doublings(at: pd.DataFrame, clip: float) -> pd.Series:
    """Return by seed the doublings of the largest stable rate through this threshold.

    The rows `at` are of one batch.
    """
    clipped, plain = (at[_same(at["clip"], value)] for value in (clip, np.nan))
    return (largest_by_seed(clipped) - largest_by_seed(plain)).dropna()


def _threshold_text(clip: float) -> str:
    return "none" if np.isnan(clip) else f"{clip:g}"


def figure(table: pd.DataFrame) -> Figure:
    """Draw the failed share over the rate, and the largest stable rate over the threshold.

    Each batch has a panel with the fitted windows and their 95 % bands. The last panel also shows single seeds.
    """
    from workbench.lab import plots

    fitted = windows(table)
    batches, clips = sorted(fitted.batch_size.unique()), sorted(fitted["clip"].unique())  # NaN last
    figure, (*shares, largest, by_line) = plots.panels(1, len(batches) + 2, (4.2 * (len(batches) + 2), 4.2))
    looks = plots.ordered_looks(map(_threshold_text, clips))
    for ax, batch in zip(shares, batches, strict=True):
        for row in fitted[fitted.batch_size == batch].itertuples():
            cell, name = _cell(table, batch, row.clip), _threshold_text(row.clip)
            share, band, look = cell.groupby("lr").failed.mean(), row.window.band, looks[_threshold_text(row.clip)]
            ax.fill_between(band.lr, band.low, band.high, color=look.color, alpha=0.12, lw=0)
            ax.plot(band.lr, band.share, color=look.color, lw=1.4)
            ax.plot(share.index, share, look.marker, ms=4, color=look.color, label=f"threshold {name}")
        ax.set(title=f"batch {batch}", ylim=(-0.03, 1.03))
        plots.rate_axis(ax)
    shares[0].set_ylabel("share of trainings that failed")

    top = table.lr.max() * 2
    for i, (batch, look) in enumerate(zip(batches, plots.LOOKS, strict=False)):
        rows = fitted[fitted.batch_size == batch]
        rates = pd.DataFrame([window.largest for window in rows.window])
        x = np.arange(len(rows)) + 0.08 * (i - (len(batches) - 1) / 2)
        within = rates[["mean", "low", "high"]].clip(upper=top).to_numpy().T
        plots.intervals(largest, x, *within, look, label=f"batch {batch}")
        for place, clip in zip(x, rows["clip"], strict=True):
            seed_rates = np.sort(2 ** largest_by_seed(_cell(table, batch, clip)))
            aside = place + np.linspace(0.06, 0.22, len(seed_rates))
            largest.plot(aside, seed_rates, ".", ms=5, color="0.6", zorder=1, label="a seed alone")
        beyond = x[np.isinf(rates.high)]
        if len(beyond):
            ends = np.full(len(beyond), top)
            largest.plot(beyond, ends, "^", ms=7, mfc="none", color="0.3", label="beyond the rates tried")
    plots.name_axis(largest.xaxis, list(looks))
    plots.log_axis(largest.yaxis, "largest stable rate")
    largest.set(xlabel="threshold", title="half of the trainings fail")
    if (curve := judge(table).curve) is not None:
        draw_by_line(by_line, curve, "doublings through clipping")
    plots.legend_outside(figure, columns=6)
    return figure


def _cell(table: pd.DataFrame, batch: int, clip: float) -> pd.DataFrame:
    return table[(table.batch_size == batch) & _same(table["clip"], clip)]


def _same(column: pd.Series, clip: float) -> pd.Series:
    return column.isna() if np.isnan(clip) else column == clip
