"""One figure for arms that screening tuned and fresh seeds confirmed: what each is worth, and which rates it stands."""

import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.evidence.effects import draw


def effects_and_rates(screened: pd.DataFrame, confirmed: pd.DataFrame, against: str) -> Figure:
    """Left: paired differences of test accuracy to the arm `against`. Right: every rate of the screening, its
    accuracy as colour, crossed where a seed failed.

    Columns: `screened` arm, lr, seed, val_acc, failed; `confirmed` arm, lr, seed, test_acc, failed.
    """
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    names = list(dict.fromkeys(screened.arm))
    height = 1.9 + 0.38 * len(names)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    draw(left, confirmed, against, names)
    left.set(title="accuracy, each at its best rate")

    cells = screened.groupby(["arm", "lr"]).agg(failed=("failed", "max"), val_acc=("val_acc", "mean")).reset_index()
    cells["y"] = cells.arm.map(names.index)
    alive, lost = cells[cells.failed == 0], cells[cells.failed == 1]
    shown = right.scatter(alive.lr, alive.y, c=100 * alive.val_acc, cmap="viridis", s=60, edgecolors="none")
    right.scatter(lost.lr, lost.y, marker="x", s=45, color="#d55e00", label="a screening seed failed")
    for y, best in enumerate(confirmed.groupby("arm").lr.first().reindex(names)):
        right.plot(best, y, "o", ms=12, mfc="none", mec="0.3", label="rate that was confirmed" if y == 0 else None)
    right.set(xscale="log", xlabel="peak learning rate", title="screening")
    right.set_xticks(sorted(screened.lr.unique()), [f"{lr:g}" for lr in sorted(screened.lr.unique())])
    right.xaxis.set_minor_locator(plt.NullLocator())
    figure.colorbar(shown, ax=right, label="validation accuracy, %")
    handles = [h + g for h, g in zip(*(ax.get_legend_handles_labels() for ax in (left, right)), strict=True)]
    figure.legend(*handles, frameon=False, ncols=6, loc="outside lower center", fontsize="small")
    return figure
