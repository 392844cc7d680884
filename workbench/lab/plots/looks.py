"""Colours and glyphs. Every colour has its own glyph.

Colour-blind readers can distinguish all colours.
"""

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import matplotlib
import seaborn as sns

matplotlib.rcParams["svg.fonttype"] = "none"


class Look(NamedTuple):
    """How one arm, or one value, is drawn in all panels of a figure."""

    color: Any
    marker: str


MARKERS = "os^DvPX<>p"
LOOKS = [Look(*look) for look in zip(sns.color_palette("colorblind", len(MARKERS)), MARKERS, strict=True)]
ARMS = ("NF+AGC", "NF", "BN", "NF without scaled WS", "GN", "NF+norm clipping", "BN+AGC", "BN recomputed")
ARM_LOOKS = dict(zip(ARMS, LOOKS, strict=False))
FAILED = "#d55e00"  # vermilion, the colour of the cross


def style() -> None:
    """Set the look of all figures. The names inside an SVG do not change from one drawing to the next."""
    rc = {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "workbench"}
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, rc=rc)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Give every name a look.

    Known arms have a fixed look. Other names take the remaining looks in order.
    """
    names = list(names)
    left = [look for look in LOOKS if look not in [ARM_LOOKS.get(name) for name in names]]
    return {name: ARM_LOOKS.get(name) or left.pop(0) for name in names}


def ordered_looks(values: Iterable[Hashable]) -> dict:
    """Give values that have an order colours from dark to light, each with a glyph."""
    values = list(values)
    colours = sns.color_palette("viridis", len(values) + 1)
    return {value: Look(colours[i], MARKERS[i % len(MARKERS)]) for i, value in enumerate(values)}


def shades(arm: str, values: Iterable[Hashable]) -> dict:
    """Give the settings of one arm shades of its colour, each with a glyph.

    Use it for a panel that also shows other arms.
    """
    values = list(values)
    colours = sns.light_palette(ARM_LOOKS[arm].color, len(values) + 1)[1:]
    return {value: Look(colours[i], MARKERS[-1 - i % len(MARKERS)]) for i, value in enumerate(values)}


def in_order(arms: Iterable[str]) -> list[str]:
    """List each arm once: known arms in their fixed order, then the others in theirs."""
    arms = list(dict.fromkeys(arms))
    return [*(arm for arm in ARMS if arm in arms), *(arm for arm in arms if arm not in ARMS)]
