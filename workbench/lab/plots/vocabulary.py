"""Figures: a tidy table in, a matplotlib figure out; none of them trains or saves. Colours are safe for the
colour-blind.

Failed trainings are marked, never dropped.
"""

import matplotlib

matplotlib.rcParams["svg.fonttype"] = "none"

import pandas as pd
import seaborn as sns

ARMS = ["NF+AGC", "NF", "BN", "NF without scaled WS", "GN", "NF+norm clipping", "BN+AGC", "BN recomputed"]
COLOURS = dict(zip(ARMS, sns.color_palette("colorblind", len(ARMS)), strict=True))
CYCLE = sns.color_palette("colorblind", 8)
MARKERS = dict(zip(ARMS, "os^DvPX<", strict=True))


def style() -> None:
    """The look of all figures; the names inside an SVG are not drawn by lot."""
    rc = {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "workbench"}
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, rc=rc)


def graded(n: int) -> list:
    """n colours of a scale from dark to light, for what has an order."""
    return sns.color_palette("viridis", n + 1)[:n]


def shades(color: str, n: int) -> list:
    """n shades of a colour from light to full, for the settings of one arm beside other arms."""
    return sns.light_palette(color, n + 1)[1:]


def arms_of(table: pd.DataFrame) -> list[str]:
    """The known arms that a table has, in their order."""
    return [a for a in ARMS if a in set(table.arm)]


def plain_log_ticks(axis, fine: bool = False) -> None:
    """Marks a logarithmic axis at 1, 2 and 5 times the powers of ten, over a wide range at those alone, or at all
    digits, in plain numbers."""
    low, high = axis.get_view_interval()
    subs = range(1, 10) if fine else (1, 2, 5) if 0 < high < 300 * low else (1,)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def arms_or_names(table: pd.DataFrame) -> list[str]:
    """The known arms in their order, then others in theirs."""
    return [*arms_of(table), *(arm for arm in dict.fromkeys(table.arm) if arm not in ARMS)]


def look_of(arm: str, i: int) -> dict:
    """Colour and marker of an arm; of one without its own, by its place i."""
    if arm in ARMS:
        return {"color": COLOURS[arm], "fmt": MARKERS[arm]}
    return {"color": sns.color_palette("colorblind", 10)[4 + i % 6], "fmt": "o"}
