"""Figures of a comparison: learning curves with bands over seeds, and parallel coordinates.

Failed trainings are drawn and marked, never dropped. Colour-blind readers can distinguish the colours and dashes.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from workbench.errors import WorkbenchError
from workbench.files import local_path, target_path, write_whole
from workbench.lab.compare.summary import LABELS, group_names
from workbench.lab.compare.table import Comparison, words
from workbench.lab.plots import FAILED, LOOKS, legend_outside, mark_collapsed, mark_failed, style
from workbench.outcomes import COLLAPSED, FINISHED

SUFFIXES = (".png", ".svg", ".pdf")
MOST = 12  # groups that a reader can distinguish in one figure
AXES = {"samples_seen": "training images seen", "seconds": "device seconds", "step": "step"}


def curves_figure(comparison: Comparison, curves: pd.DataFrame, x: str = "samples_seen") -> Figure:
    """Draw learning curves: mean validation accuracy, one line per group.

    A band shows the range from the lowest to the highest seed. Failed seeds are separate thin lines with a cross at
    their end. They count neither in the mean nor in the band.
    Only the best `MOST` groups are drawn. If there are more, the title says so.

    Args:
        comparison: The groups and their trainings.
        curves: Their evaluations, from `selection.curves`.
        x: The x-axis: "samples_seen", "seconds" or "step".
    """
    style()
    figure, ax = plt.subplots(figsize=(8.0, 6.0), layout="constrained")
    shown = comparison.table.index[:MOST]
    names = _with_counts(comparison)
    points = curves.merge(
        comparison.rows[
            ["run_id", "group", "failed", "val_acc", "failed_at_step", "samples_seen", "device_seconds", "outcome"]
        ],
        on="run_id",
        suffixes=("", "_last"),
    )
    for place, group in enumerate(shown):
        color, marker = LOOKS[place % len(LOOKS)]
        look = {"color": color, "ls": "-" if place < len(LOOKS) else "--", "marker": marker, "ms": 4, "markevery": 0.1}
        group_points = points[points.group == group]
        kept = group_points[group_points.failed != 1].groupby("step")
        if len(kept):
            along = kept[x].mean()
            ax.fill_between(along, kept.val_acc.min(), kept.val_acc.max(), color=color, alpha=0.18, lw=0)
        ax.plot(*((along, kept.val_acc.mean()) if len(kept) else ([], [])), lw=1.6, label=names[group], **look)
        for row in comparison.rows[(comparison.rows.group == group) & (comparison.rows.failed == 1)].itertuples():
            line = group_points[group_points.run_id == row.run_id]
            ax.plot(line[x], line.val_acc, lw=0.7, alpha=0.8, **look)
            end = {"samples_seen": row.samples_seen, "seconds": row.device_seconds, "step": row.failed_at_step}[x]
            last = line[x].max() if row.outcome in FINISHED else end
            if row.outcome == COLLAPSED:
                mark_collapsed(ax, [last], [row.val_acc], "a seed collapsed", color)
            else:
                mark_failed(ax, [last], [row.val_acc], "a seed failed here", color)
    more = f", best {len(shown)} of {len(comparison.table)} groups" if len(shown) < len(comparison.table) else ""
    ax.set(
        xlabel=AXES[x],
        ylabel="validation accuracy",
        title=f"mean of the seeds that did not fail, band: lowest to highest{more}",
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    legend_outside(figure, columns=2)
    return figure


def parallel_figure(comparison: Comparison) -> Figure:
    """Draw parallel coordinates: one line per training.

    Every parameter that varies has an axis, and accuracy has the last one. Accuracy sets the colour. Failed trainings
    are dashed, with a cross at their accuracy.
    """
    style()
    rows = comparison.rows.reset_index(drop=True)
    last = comparison.table.columns.get_loc("seeds")
    columns = [c for c in comparison.table.columns[2:last] if c in rows and rows[c].nunique(dropna=False) > 1]
    columns = columns or [c for c in ("arm", "lr") if c in rows]
    places, ticks = zip(*(_axis(rows[c], c) for c in columns), strict=True)
    low, high = rows.accuracy.min(), rows.accuracy.max()
    reach = (high - low) or 1.0
    places = np.column_stack([*places, (rows.accuracy - low) / reach])
    figure, ax = plt.subplots(figsize=(2.2 + 1.7 * len(columns), 4.4), layout="constrained")
    colours = sns.color_palette("viridis", as_cmap=True)
    across = np.arange(places.shape[1])
    nudge = np.random.default_rng(0).uniform(-0.025, 0.025, places.shape)  # keeps overlapping lines visible
    nudge[:, -1] = 0
    for i in np.argsort(rows.accuracy.to_numpy()):
        failed = rows.failed[i] == 1
        look = {"color": FAILED, "ls": "--", "lw": 0.9} if failed else {"color": colours(places[i, -1]), "lw": 1.1}
        ax.plot(across, places[i] + nudge[i], alpha=0.75, zorder=3 if failed else 2, **look)
        if failed:
            glyph = "+" if rows.outcome[i] == COLLAPSED else "x"
            ax.plot(across[-1], places[i, -1], glyph, color=FAILED, ms=7, mew=1.6, clip_on=False, zorder=5)
    share = np.linspace(0, 1, 5)
    for k, marks in enumerate([*ticks, list(zip(share, [f"{low + s * reach:.1%}" for s in share], strict=True))]):
        ax.axvline(k, color="0.6", lw=0.8, zorder=1)
        for height, text in marks:
            ax.annotate(
                text,
                (k, height),
                (4, 0),
                textcoords="offset points",
                fontsize="small",
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7},
                zorder=6,
            )
    lost = rows[rows.failed == 1].outcome == COLLAPSED
    if len(lost):
        for glyph, name, drawn in (("x", "diverged", (~lost).any()), ("+", "collapsed", lost.any())):
            ax.plot([], [], f"{glyph}--", color=FAILED, lw=0.9, label=name if drawn else None)
        figure.legend(frameon=False, loc="outside lower center")
    ax.set_xticks(across, [*(LABELS.get(c, c).replace("_", " ") for c in columns), words(comparison.metric)])
    ax.set(yticks=[], xlim=(-0.1, across[-1] + 0.35), ylim=(-0.05, 1.05))
    sns.despine(ax=ax, left=True, bottom=True)
    return figure


def save(figure: Figure, file: str) -> None:
    """Write a figure in the format of the file's suffix, and close it.

    Raises:
        WorkbenchError: If the suffix is not one of `SUFFIXES`.
    """
    check_file(file)
    write_whole(local_path(file), lambda part: figure.savefig(part, dpi=160, bbox_inches="tight"))
    plt.close(figure)


def shown(figure: Figure) -> Figure:
    """Return the figure closed, because a notebook shows an open figure twice."""
    plt.close(figure)
    return figure


def check_file(file: str) -> None:
    """Check the file name of a figure before anything is read.

    Raises:
        WorkbenchError: If the suffix is not one of `SUFFIXES`, or the file cannot be written.
    """
    if not file.lower().endswith(SUFFIXES):
        raise WorkbenchError(f"the figure {file} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    target_path(file, (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)))


def _with_counts(comparison: Comparison) -> dict[int, str]:
    """Return the names of the groups, each with its number of seeds or of failed seeds."""
    labels = {}
    for (group, name), row in zip(group_names(comparison).items(), comparison.table.itertuples(), strict=True):
        labels[group] = name + (f", {row.failed} of {row.seeds} failed" if row.failed else f" (n = {row.seeds})")
    return labels


def _axis(values: pd.Series, name: str) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Place values on an axis from 0 to 1.

    Words are spaced evenly. Positive numbers are placed by their logarithm, other numbers linearly, and missing values
    at 0.

    Returns:
        The places of the values, and the marks of the axis as (height, text).
    """
    if values.dtype == object or not pd.api.types.is_numeric_dtype(values):
        texts = values.map(str)
        known = sorted(texts.unique(), reverse=True)
        at = {text: i / max(1, len(known) - 1) for i, text in enumerate(known)}
        return texts.map(at).to_numpy(float), [(height, text) for text, height in at.items()]
    logs = np.log10(values) if (values.dropna() > 0).all() else values.astype(float)
    low, high = logs.min(), logs.max()
    foot = 0.12 if values.isna().any() else 0.0
    scale = lambda v: foot + (1 - foot) * ((v - low) / (high - low) if high > low else 0.5 + 0 * v)
    marks = sorted(values.dropna().unique())
    if len(marks) > 8:
        marks = [marks[i] for i in np.linspace(0, len(marks) - 1, 6).round().astype(int)]
    shown = [(float(scale(np.log10(m) if (values.dropna() > 0).all() else m)), f"{m:.3g}") for m in marks]
    return scale(logs).fillna(0.0).to_numpy(), [*([(0.0, "none")] if foot else []), *shown]
