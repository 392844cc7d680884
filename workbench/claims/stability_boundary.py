"""Claim 7: adaptive gradient clipping raises the largest learning rate at which a normalizer-free network trains.

Source: NFNet paper, section 4.1. Table: one row a training, with arm (NF, NF+AGC), batch_size, lr, clip, seed, failed.
The contrast, written down before the run, in which nothing else is chosen: the largest stable rate with the smallest
threshold against that without clipping, at the largest batch, in doublings, paired by seed: it is seeds that are
counted, for the trainings of one go together. A window of rates is fitted to all trainings of a cell, to be drawn.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.boundary import Window, largest_by_seed, shift, stable_window
from workbench.lab.statistics.intervals import difference_p, t_interval
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim("Clipping raises the largest stable learning rate", number=7)

MISFIT = 0.01  # a fit with a smaller p-value is reported as none


def windows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a batch size and threshold (NaN: no clipping): batch_size, clip, window."""
    rows = []
    for (batch, clip), cell in table.groupby(["batch_size", "clip"], dropna=False):
        rows.append({"batch_size": batch, "clip": clip, "window": stable_window(cell.lr, cell.failed)})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What the fits say, to be read: the stable window of rates at each batch and threshold, with 95 % intervals."""
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
    """Is the largest stable rate higher with clipping?"""
    fitted = windows(table)
    batch = fitted.batch_size.max()
    at = fitted[fitted.batch_size == batch].set_index("clip").window
    smallest = min(clip for clip in at.index if not np.isnan(clip))
    here = table[table.batch_size == batch]
    clipped, plain = (here[_same(here["clip"], clip)] for clip in (smallest, np.nan))
    difference = (largest_by_seed(clipped) - largest_by_seed(plain)).dropna()
    raised, p = t_interval(difference), difference_p(difference)
    holds = None if not p < 0.05 else bool(raised.mean > 0)
    relation = {True: "raises", False: "lowers", None: "is not shown to change"}[holds]
    each = "; ".join(
        f"batch {batch}: " + ", ".join(_largest_text(row["clip"], row.window) for _, row in rows.iterrows())
        for batch, rows in fitted.groupby("batch_size")
    )
    misfits = int((fitted.window.map(lambda w: w.deviance_p) < MISFIT).sum())
    together, _ = shift(at[smallest], at[np.nan])
    sentence = (
        f"At batch {batch} clipping at {smallest:g} {relation} the largest stable rate, by {raised:.2f} doublings over "
        f"{raised.n} seeds, from {difference.min():.2f} to {difference.max():.2f}; all trainings fitted together give "
        f"{together:.1f}. Largest stable rates: {each}."
    )
    if ends := _beyond(clipped) + _beyond(plain):
        sentence += f" Of {ends} seeds an end lies beyond the rates that were tried."
    if misfits:
        sentence += f" In {misfits} of {len(fitted)} cells no window of rates describes the outcomes."
    return Verdict(sentence, holds, "doublings of the largest stable rate through clipping", raised, p=p)


def _beyond(cell: pd.DataFrame) -> int:
    """How many seeds failed at all rates, or at none."""
    return int(cell.groupby("seed").failed.mean().isin([0, 1]).sum())


def _largest_text(clip: float, window: Window) -> str:
    return f"{'none' if np.isnan(clip) else f'{clip:g}'} {window.largest:.2g}"


def figure(table: pd.DataFrame) -> Figure:
    """The share that failed over the rate, with the fitted window and its 95 % band, a panel a batch; and the largest
    stable rate over the threshold, with those of single seeds."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    fitted = windows(table)
    batches = sorted(fitted.batch_size.unique())
    clips = sorted(fitted["clip"].unique())  # NaN last
    colours = plots.graded(len(clips))
    figure, axes = plt.subplots(1, len(batches) + 1, figsize=(4.2 * (len(batches) + 1), 3.9), layout="constrained")
    for ax, batch in zip(axes, batches, strict=False):
        rows = fitted[fitted.batch_size == batch].reset_index(drop=True)
        for (i, row), colour in zip(rows.iterrows(), colours, strict=True):
            cell = table[(table.batch_size == batch) & _same(table["clip"], row["clip"])]
            share = cell.groupby("lr").failed.mean()
            band = row.window.band
            ax.fill_between(band.lr, band.low, band.high, color=colour, alpha=0.12, lw=0)
            ax.plot(band.lr, band.share, color=colour, lw=1.4)
            x = share.index * 1.04 ** (i - len(rows) / 2)  # side by side
            name = "none" if np.isnan(row["clip"]) else f"{row['clip']:g}"
            ax.plot(x, share, "o", ms=4, color=colour, label=name)
        ax.set(xscale="log", title=f"batch {batch}", xlabel="peak learning rate", ylim=(-0.03, 1.03))
        plots.plain_log_ticks(ax.xaxis)
    axes[0].set_ylabel("share of trainings that failed")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, title="threshold", frameon=False, ncols=len(clips), loc="outside lower left")
    for batch, marker in zip(batches, "os^Dv", strict=False):
        rows = fitted[(fitted.batch_size == batch)].reset_index(drop=True)
        largest = [w.largest for w in rows.window]
        top = table.lr.max() * 2
        y, low, high = (np.array([min(getattr(w, end), top) for w in largest]) for end in ("mean", "low", "high"))
        x = np.arange(len(rows)) + 0.08 * (batches.index(batch) - (len(batches) - 1) / 2)
        axes[-1].errorbar(x, y, [y - low, high - y], fmt=marker, ms=5, capsize=2, lw=1, label=f"batch {batch}",
                          color=plots.CYCLE[batches.index(batch)])  # fmt: skip
        for place, (_, row) in zip(x, rows.iterrows(), strict=True):
            cell = table[(table.batch_size == batch) & _same(table["clip"], row["clip"])]
            rates = np.sort(2 ** largest_by_seed(cell))
            axes[-1].plot(place + np.linspace(0.06, 0.22, len(rates)), rates, ".", ms=5, color="0.6", zorder=1)
        beyond = np.array([np.isinf(w.high) for w in largest])
        axes[-1].plot(x[beyond], np.full(beyond.sum(), top), "^", ms=7, mfc="none", color="0.3")
    axes[-1].set(yscale="log", xlabel="threshold", ylabel="largest stable rate", title="half of the trainings fail")
    axes[-1].set_xticks(range(len(clips)), ["none" if np.isnan(c) else f"{c:g}" for c in clips])
    axes[-1].plot([], [], ".", ms=5, color="0.6", label="a seed alone")
    axes[-1].plot([], [], "^", mfc="none", color="0.3", label="beyond the rates tried")
    plots.plain_log_ticks(axes[-1].yaxis)
    axes[-1].legend(frameon=False, fontsize="small")
    return figure


def _same(column: pd.Series, clip: float) -> pd.Series:
    return column.isna() if np.isnan(clip) else column == clip
