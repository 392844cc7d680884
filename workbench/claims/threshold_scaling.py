"""Claim 3: the best clipping threshold falls as the batch grows.

Is the batch the cause, or the rate that grows with it?

Source: NFNet paper, section 4.1, figure 2. Clipping bounds the step of a unit relative to its weights by rate x
threshold, so stability may depend on that product alone. One model over all trainings fits the largest stable rate at
batch B and threshold c, for a fixed number of steps:

    log2 rate = max(u_B, a_B - k log2 c)        u_B: without clipping, or with a threshold too large to act

If k is 1, only the product counts. If k is 0, only the rate counts. a_B - a_B' is the effect of the batch itself at an
equal threshold. k depends on what counts as failed: it falls where slow trainings count, too. So the table has k by
failure line, and no rule for the rate follows from one of its values.

Contrast, written down before the confirmation: k is 1 within 0.25.

Table:
    table: One row per training. Columns as for stability_boundary, with val_acc and outcome.
"""

import dataclasses
import math
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.boundary import DROP, STEEPNESS, log_likelihood, logistic, p_of_drop, positions
from workbench.lab.statistics.failure_line import at_line, over_lines
from workbench.lab.statistics.intervals import Interval, t_interval, with_ci
from workbench.lab.statistics.preconditions import FAILURES, some_fail
from workbench.lab.statistics.rates import at_carried_rate
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict, fact
from workbench.outcomes import COLLAPSED, COMPLETE, DIVERGED

CLAIM = Claim(
    "The threshold falls because the rate rises: stability depends on rate x threshold alone",
    precondition=FAILURES,
    number=3,
    unit="exponent",
)

MARGIN = 0.25  # of the exponent
TUNED = "tuned"
OUTCOME_MARKS = {COMPLETE: "o", COLLAPSED: "s", DIVERGED: "x"}
# A candidate law of collapse, fitted to these trainings after looking at them: the largest rate is
# sqrt(u^2 + 1 / (threshold / P + 1 / H)^2). u bounds trainings without clipping, H those whose head is not clipped.
LAW_U, LAW_P, LAW_H = 0.77, 0.120, 41.0
SLOW_LINES = (0.76, 0.80)  # shares of ln C that slow trainings do not reach either
EXPONENTS = np.linspace(-0.25, 2.0, 46)


@dataclass(frozen=True)
class Collapse:
    """The fitted boundary of stability.

    Attributes:
        exponent: The exponent k.
        shift: Doublings of the product from the smallest to the largest batch.
        unclipped: By batch the rate 2^u at the best fit.
        product: By batch the product 2^a at the best fit.
        p_rate_alone: p-value of k = 0.
        p_not_product: p-value of k away from 1 by 0.25 or more.
        p_product: p-value of k within 0.25 of 1.
        p_no_shift: p-value of no shift.
        fits: The fits within 95 %. Columns exponent, batch_size, unclipped, product.
    """

    exponent: Interval
    shift: Interval
    unclipped: dict[int, float]
    product: dict[int, float]
    p_rate_alone: float
    p_not_product: float
    p_product: float
    p_no_shift: float
    fits: pd.DataFrame


def collapse(table: pd.DataFrame, exponents: np.ndarray = EXPONENTS) -> Collapse:
    """Fit the model by maximum likelihood on a grid. Intervals are profiles.

    Args:
        table: Columns batch_size, clip, lr, failed.
        exponents: Grid of k.
    """
    batches = sorted(table.batch_size.unique())
    products = np.log2(table.lr * table["clip"].fillna(1))
    u, a = positions(np.log2(table.lr))[::2], positions(products[table["clip"].notna()])
    outcomes = {b: _outcomes(table[table.batch_size == b]) for b in batches}
    best: dict[tuple, np.ndarray] = {}  # by (k, steepness): for every batch the best likelihood over u, by a
    for k in exponents:
        for steep in STEEPNESS:
            best[k, steep] = [_by_product(outcomes[b], u, a, k, steep) for b in batches]
    by_exponent = {k: max(sum(p.max() for p, _ in best[k, s]) for s in STEEPNESS) for k in exponents}
    top = max(by_exponent.values())
    inside = [k for k, value in by_exponent.items() if value >= top - DROP]
    k_best, s_best = max(best, key=lambda ks: sum(p.max() for p, _ in best[ks]))
    n = len(table)
    shifts = _profile_of_shift(best, len(a)) if len(batches) > 1 else {0: top}
    d_best = float(np.median([d for d, value in shifts.items() if value >= top - 0.05]))  # the middle of a plateau
    d_inside = [d for d, value in shifts.items() if value >= top - DROP]
    doubling = a[1] - a[0]
    far = [value for k, value in by_exponent.items() if abs(k - 1) > MARGIN - 1e-9]
    near = [value for k, value in by_exponent.items() if abs(k - 1) < MARGIN + 1e-9]
    at_best = best[k_best, s_best]
    return Collapse(
        exponent=Interval(float(k_best), float(min(inside)), float(max(inside)), n),
        shift=Interval(d_best * doubling, min(d_inside) * doubling, max(d_inside) * doubling, n),
        unclipped={b: float(2 ** u[w[p.argmax()]]) for b, (p, w) in zip(batches, at_best, strict=True)},
        product={b: float(2 ** a[p.argmax()]) for b, (p, _) in zip(batches, at_best, strict=True)},
        p_rate_alone=p_of_drop(top - by_exponent[min(exponents, key=abs)]),
        p_not_product=p_of_drop(top - max(far)) / 2 if abs(k_best - 1) < MARGIN - 1e-9 else 1.0,
        p_product=p_of_drop(top - max(near)),
        p_no_shift=p_of_drop(top - shifts[0]),
        fits=_of_95_percent(best, batches, u, a, top),
    )


def _outcomes(cell: pd.DataFrame) -> list[tuple]:
    """List for each threshold: its value, the rates' binary logarithms, and the failures."""
    by_clip = cell.groupby("clip", dropna=False)
    return [(clip, np.log2(rows.lr.to_numpy()), rows.failed.to_numpy(float)) for clip, rows in by_clip]


def _by_product(outcomes: list[tuple], u: np.ndarray, a: np.ndarray, k: float, steep: float) -> tuple:
    """Return the best log-likelihood over u for each place a, and the index of that u.

    The bound of a training is one of the two. The likelihood is therefore needed at the places of each alone, not at
    all pairs.
    """
    total = np.zeros((len(u), len(a)))
    for clip, x, y in outcomes:

        def at(bound, x=x, y=y):
            return log_likelihood(lambda place: logistic(steep * (place - bound)), x, y)

        if np.isnan(clip):
            total += at(u)[:, None]
        else:
            clipped = a - k * math.log2(clip)
            total += np.where(u[:, None] >= clipped, at(u)[:, None], at(clipped))
    return total.max(0), total.argmax(0)


def _of_95_percent(best: dict[tuple, list], batches: list[int], u: np.ndarray, a: np.ndarray, top: float):
    """Collect the fits with a log-likelihood within DROP of the best.

    The other batches are at their best.
    """
    rows = []
    for (k, _), profiles in best.items():
        whole = sum(p.max() for p, _ in profiles)
        for batch, (p, which) in zip(batches, profiles, strict=True):
            inside = whole - p.max() + p >= top - DROP
            rows.append(pd.DataFrame({"exponent": k, "batch_size": batch, "unclipped": 2.0 ** u[which[inside]],
                                      "product": 2.0 ** a[inside]}))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def _profile_of_shift(best: dict[tuple, list], places: int) -> dict[int, float]:
    """Return the best log-likelihood by a(last batch) - a(first batch), in grid places."""
    likelihoods = dict.fromkeys(range(-places + 1, places), -math.inf)
    for profiles in best.values():
        first, last = profiles[0][0], profiles[-1][0]
        others = sum(p.max() for p, _ in profiles[1:-1])
        for d in likelihoods:
            i = np.arange(max(0, -d), min(places, places - d))
            likelihoods[d] = max(likelihoods[d], (first[i] + last[i + d]).max() + others)
    return likelihoods


def judge(table: pd.DataFrame) -> Verdict:
    """Judge at every failure line whether the boundary depends on rate x threshold alone.

    The table has the exponent by line, also where slow trainings count as failed, and the effect of the batch.
    """
    table = at_line(table)
    if (undecided := nothing_to_compare(table[table["clip"].notna()])) is not None:
        return undecided
    verdict, upper = over_lines(_at_line, table), upper_side(table)
    by_line = [_exponent_at(line, table) for line in SLOW_LINES]
    by_line += [fact(f"exponent k, failed from {row.line:g} ln C", Interval(row.effect, row.low, row.high, len(upper)))
                for row in verdict.curve.itertuples()]  # fmt: skip
    seen = [row["value"] for row in by_line]
    counted = f"n: trainings, of {upper.seed.nunique()} seeds"
    name = f"exponent k, {min(seen):.2f} to {max(seen):.2f} by failure line ({counted})"
    effect = dataclasses.replace(verdict.effect, name=name)
    facts = [*by_line, *_boundary_facts(upper), *_best_threshold_facts(table)]
    verdict = dataclasses.replace(verdict, effect=effect, table=pd.DataFrame(facts))
    return verdict.on(some_fail(CLAIM.precondition, table, "NF", "NF+AGC"))


def _at_line(table: pd.DataFrame) -> Verdict:
    upper = upper_side(table)
    fit = collapse(upper)
    effect = Effect("exponent k of the threshold", fit.exponent, min(fit.p_not_product, fit.p_product))
    holds = True if fit.p_not_product < 0.05 else False if fit.p_product < 0.05 else None
    relation = {True: "depends", False: "does not depend", None: "is not shown to depend"}[holds]
    headline = (
        f"Stability {relation} on rate x threshold alone: the exponent is {with_ci(fit.exponent, counted='training')}."
    )
    return Verdict(holds, effect, headline, pd.DataFrame())


def _exponent_at(line: float, table: pd.DataFrame) -> dict:
    exponent = collapse(upper_side(at_line(table, line))).exponent
    return fact(f"exponent k, slow trainings count: from {line:g} ln C", exponent)


def _boundary_facts(upper: pd.DataFrame) -> list[dict]:
    """Exponents and shifts: of all trainings, and of each batch and seed."""
    fit = collapse(upper)
    batches = sorted(fit.product)
    seeds = [collapse(rows, EXPONENTS[1::2]).exponent.mean for _, rows in upper.groupby("seed")]
    rows = [fact("exponent k; p of 0, the rate alone", fit.exponent, p=fit.p_rate_alone)]
    rows += [fact(f"rate x threshold where half fail, batch {b}", product) for b, product in fit.product.items()]
    if len(batches) > 1:
        rows += [fact(f"exponent k, batch {b} alone", collapse(upper[upper.batch_size == b]).exponent) for b in batches]
        shift = f"doublings from batch {batches[0]} to {batches[-1]}"
        rows.append(fact(f"{shift}; p of 0", fit.shift, p=fit.p_no_shift))
    seed_range = Interval(math.nan, min(seeds), max(seeds), len(seeds))
    return [*rows, fact("exponent k, lowest and highest of a seed", seed_range)]


def _best_threshold_facts(table: pd.DataFrame) -> list[dict]:
    """One row per batch and protocol: the best threshold. `by_rate` has the best at each rate.

    Only rows of the tuned protocol have `by_rate`.
    """
    by_rate = best_thresholds(table)
    rows = []
    for row in by_protocol(table).itertuples():
        name = f"best threshold{' (none)' if np.isnan(row.clip) else ''} at batch {row.batch_size}, {row.protocol}"
        rates = by_rate.get(row.batch_size, "") if row.protocol == TUNED else ""
        rows.append(fact(name, row.clip, lr=row.lr, val_acc=row.val_acc, by_rate=rates))
    return rows


def upper_side(table: pd.DataFrame) -> pd.DataFrame:
    """Drop the rates below the most accurate one of each batch and threshold.

    At those rates a training fails because it is slow.
    """
    means = table.groupby(["batch_size", "clip", "lr"], dropna=False).val_acc.mean().reset_index()
    best = means.loc[means.groupby(["batch_size", "clip"], dropna=False).val_acc.idxmax()]
    best = best[["batch_size", "clip", "lr"]].rename(columns={"lr": "best_lr"})
    merged = table.merge(best, on=["batch_size", "clip"])
    return merged[merged.lr >= merged.best_lr].drop(columns="best_lr")


def best_thresholds(table: pd.DataFrame) -> dict[int, str]:
    """Write by batch which threshold has the highest mean validation accuracy at each rate.

    Only trainings that did not fail count. Neighbouring rates with the same threshold share one entry.
    """
    texts: dict[int, str] = {}
    for batch, rows in table[table.failed == 0].groupby("batch_size"):
        means = rows.groupby(["lr", "clip"], dropna=False).val_acc.mean().reset_index()
        best = means.loc[means.groupby("lr").val_acc.idxmax(), ["lr", "clip"]]
        parts = []
        for clip, same in groupby(best.itertuples(), key=lambda row: "none" if np.isnan(row.clip) else f"{row.clip:g}"):
            rates = [f"{row.lr:.3g}" for row in same]
            parts.append(f"{clip} at {rates[0]}" + (f" to {rates[-1]}" if len(rates) > 1 else ""))
        texts[batch] = ", ".join(parts)
    return texts


def by_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """Find the best threshold of each batch by two protocols.

    `tuned` takes the best rate and threshold of all. `rate scaled` is the paper's way (section 4.1). It takes the best
    rate of the smallest batch, in proportion to the batch, and the best threshold at that rate. It needs a grid that
    contains that rate.

    Returns:
        Columns batch_size, protocol, lr, clip, val_acc (mean over seeds).
    """
    means = table.groupby(["batch_size", "lr", "clip"], dropna=False).val_acc.mean().reset_index()
    rows = []
    for batch, cells in means.groupby("batch_size"):
        choices = {TUNED: cells}
        if batch > means.batch_size.min():
            choices["rate scaled"] = at_carried_rate(means, batch, "val_acc")
        rows += [
            {"batch_size": batch, "protocol": protocol, **grid.loc[grid.val_acc.idxmax(), ["lr", "clip", "val_acc"]]}
            for protocol, grid in choices.items()
            if len(grid)
        ]
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> Figure:
    """Draw how every training ended, over rate and threshold, with the lines of a candidate law.

    The batches stand next to each other in a cell, smaller ones to the left, and seeds one above the other. Trainings
    without clipping are the uppermost row. The law was fitted after the fact and is a candidate.
    """
    from workbench.lab import plots

    batches, seeds = sorted(table.batch_size.unique()), sorted(table.seed.unique())
    clips = [*sorted(table["clip"].dropna().unique()), math.nan]
    figure, (ax,) = plots.panels(1, 1, (12, 2.2 + 0.8 * len(clips)))
    looks = dict(zip(batches, plots.LOOKS, strict=False))
    y = table["clip"].map(dict(zip(clips, range(len(clips)), strict=True))).fillna(len(clips) - 1)
    y = y + table.seed.map(dict(zip(seeds, _around(len(seeds), 0.2), strict=True)))
    x = table.lr * 2.0 ** table.batch_size.map(dict(zip(batches, _around(len(batches), 0.12), strict=True)))
    for (batch, look), (outcome, mark) in product(looks.items(), OUTCOME_MARKS.items()):
        rows = (table.batch_size == batch) & (table.outcome == outcome)
        face = look.color if outcome == COMPLETE else "none"
        style = {"ls": "none", "color": look.color, "mfc": face, "ms": 5, "label": f"batch {batch}, {outcome}"}
        if rows.any():
            ax.plot(x[rows], y[rows], mark, **style)
    _cells(ax, clips, table.lr)
    _law(ax, clips)
    plots.log_axis(ax.xaxis, "peak learning rate", table.lr)
    ax.set_yticks(range(len(clips)), ["none" if math.isnan(clip) else f"{clip:g}" for clip in clips])
    ax.set(
        ylabel="clipping threshold", ylim=(-0.5, len(clips) - 0.5), xlim=(table.lr.min() / 1.2, table.lr.max() * 1.2)
    )
    plots.legend_outside(figure, columns=4)
    return figure


def _around(n: int, width: float) -> np.ndarray:
    return np.linspace(-width, width, n) if n > 1 else np.zeros(1)


def _cells(ax: Axes, clips: list[float], rates: pd.Series) -> None:
    """Draw the borders between rates, in the middle on a logarithmic scale, and between thresholds."""
    tried = np.sort(rates.unique())
    for border in np.sqrt(tried[1:] * tried[:-1]):
        ax.axvline(border, color="0.9", lw=0.6, zorder=0)
    for row in range(len(clips) - 1):
        ax.axhline(row + 0.5, color="0.8", lw=0.8, zorder=0)


def _law(ax: Axes, clips: list[float]) -> None:
    """Draw the candidate law of collapse: its whole boundary, and the three bounds that it joins.

    Between two rows, the threshold is interpolated on a logarithmic scale.
    """
    known = np.log([clip for clip in clips if not math.isnan(clip)])
    if len(known) == 0:
        return
    y = np.linspace(0, len(known) - 1, 200)
    thresholds = np.exp(np.interp(y, np.arange(len(known)), known))
    bounds = {
        f"P / threshold, P = {LAW_P:g}": LAW_P / thresholds,
        f"H = {LAW_H:g}: the head is not clipped": np.full(len(y), LAW_H),
    }
    ax.plot([LAW_U, LAW_U], [0, len(clips) - 0.5], "--", color="0.4", lw=1.1, label=f"u = {LAW_U:g}: without clipping")
    for (name, rates), style in zip(bounds.items(), ("-.", ":"), strict=True):
        ax.plot(rates, y, style, color="0.4", lw=1.1, label=name)
    whole = np.sqrt(LAW_U**2 + 1 / (thresholds / LAW_P + 1 / LAW_H) ** 2)
    ax.plot(whole, y, "-", color="black", lw=1.4, label="candidate law, fitted after the fact")


def accuracy_at_best(table: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each batch and threshold at its best rate.

    Returns:
        One row per batch and threshold. Columns batch_size, clip, lr, lr_x_clip, accuracy.
    """
    rows = []
    for (batch, clip), cell in table.groupby(["batch_size", "clip"], dropna=False):
        lr = cell.groupby("lr").val_acc.mean().idxmax()
        accuracy = f"{t_interval(cell[cell.lr == lr].val_acc):.1%}"
        rows.append({"batch_size": batch, "clip": clip, "lr": lr, "lr_x_clip": lr * clip, "accuracy": accuracy})
    return pd.DataFrame(rows)
