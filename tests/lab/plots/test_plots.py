"""Figures. Evidence: every arm is drawn, failures are marked, and axes have names."""

import numpy as np
import pandas as pd
import pytest
from support.tables import confirmed, signal_table, trials

from workbench.claims import clipping_search, large_batch, signal_propagation
from workbench.lab import plots


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_signal_figure_has_four_named_panels_and_a_line_for_the_theory():
    table = signal_table(1.0).assign(residual_var=1.0, expected_residual_var=1.0, expected_mean_sq=0.0)
    figure = signal_propagation.figure(table)
    assert [ax.get_title() for ax in figure.axes] == [
        "average squared channel mean",
        "average channel variance",
        "variance of the residual branch",
        "variance of the gradient",
    ]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert set(labels) == {"theory", "NF", "BN", "NF without scaled WS"}
    dashed = [line for line in figure.axes[1].lines if line.get_linestyle() == "--"]
    assert np.allclose(dashed[0].get_ydata(), [1, 1.04, 1.08, 1.12, 1.16])


def test_the_effects_figure_has_one_column_per_factor_and_one_line_per_value():
    nf = signal_table(1.0)[lambda t: t.arm == "NF"]
    arms = [nf.assign(factor=f, arm=v) for f, v in (("width", "1"), ("width", "2"), ("alpha", "0.2"))]
    figure = signal_propagation.effects_figure(pd.concat(arms))
    assert [ax.get_title() for ax in figure.axes[:4]] == ["width", "alpha", "", ""]
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["1", "2"]


def test_the_inputs_figure_has_both_inputs_with_their_expected_values():
    noise = signal_table(1.0)[lambda t: t.arm == "NF"].assign(arm="nf_resnet26_cifar")
    figure = signal_propagation.inputs_figure(pd.concat([noise, noise.assign(input="images", expected_var=0.3)]))
    (ax,) = figure.axes
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert dashed == [1.0, 0.3] and ax.get_title() == "nf_resnet26_cifar"


def test_the_check_figure_marks_faults():
    table = signal_table(1.0)[lambda t: (t.arm == "NF") & (t.seed == 0)].assign(verdict="sound")
    table.loc[table.block == 3, "verdict"] = "grows"
    var = plots.check_figure(table).axes[0]
    marks = {line.get_label(): line.get_xdata().tolist() for line in var.lines}
    assert marks["fault"] == [3] and marks["measured"] == [0, 1, 2, 3, 4] and "theory, of noise" in marks


def test_signals_over_time_have_one_cell_per_block_and_step_gray_without_a_number():
    rows = [
        {"step": s, "block": b, "var": 10.0 ** (b + s), "mean_sq": 0.0, "residual_var": np.nan, "grad_var": np.inf}
        for s in (0, 5)
        for b in (0, 1, 2)
    ]
    figure = plots.signal_over_time_figure(pd.DataFrame(rows))
    var, shift, branch, gradient = figure.axes[:4]
    assert var.collections[0].get_array().reshape(3, 2).tolist() == [[0, 5], [1, 6], [2, 7]]
    assert var.get_ylabel() == "residual block (0 = stem)" and var.get_xlabel() == "step"
    assert all(np.ma.getmaskarray(ax.collections[0].get_array()).all() for ax in (shift, branch, gradient))


def test_curvature_figure_shows_the_limit_and_leaves_out_infinite_values():
    row = {"step": 0, "sharpness": 5.0, "lr_x_sharpness": 1.0, "limit": 3.8, "noise_scale": 64.0}
    rows = [{**row, "noise_low": 32.0, "noise_high": np.inf}, {**row, "step": 5, "noise_scale": np.inf}]
    sharpness, product, noise = plots.curvature_figure(pd.DataFrame(rows)).axes
    assert product.lines[1].get_ydata()[0] == 3.8 and product.get_legend() is not None
    assert sharpness.lines[0].get_xdata().tolist() == [0, 5]
    assert noise.lines[0].get_xdata().tolist() == [0] and noise.get_ylabel() == "images"


def test_search_figure_shows_diverged_trials_and_every_seed():
    figure = clipping_search.figure(trials(), confirmed(0.1), {"clip": 0.7, "base_lr": 0.3})
    assert points(figure.axes[0], "x") == [(1.0, 0.64)]
    seeds = sum(len(line.get_xdata()) for line in figure.axes[4].lines if line.get_alpha() == 0.6)
    assert seeds == 8


def test_search_figure_has_one_slice_per_parameter_with_every_trial():
    shown = trials()
    figure = clipping_search.figure(shown, confirmed(0.1), {})
    for ax, rows, column in ((figure.axes[1], shown[shown.arm == "NF+AGC"], "clip"), (figure.axes[2], shown, "lr")):
        assert sorted(x for x, _ in points(ax)) == sorted(rows[column].tolist())


def test_search_figure_explains_missing_importance():
    figure = clipping_search.figure(trials(), confirmed(0.1), {})
    assert any("too few trials" in t.get_text() for t in figure.axes[3].texts)


def test_batch_figure_marks_failures_and_has_one_column_per_batch():
    rows = [
        {"arm": arm, "batch_size": b, "lr": lr, "seed": s, "val_acc": 0.5, "failed": int(arm == "NF" and lr > 1),
         "outcome": "diverged" if arm == "NF" and lr > 1 else "complete", "val_loss": 1.0, "data": "cifar10"}
        for arm in ("BN", "NF", "NF+AGC") for b in (64, 256) for lr in (0.4, 1.6) for s in (0, 1)
    ]  # fmt: skip
    figure = large_batch.figure(pd.DataFrame(rows))
    tops = [ax for ax in figure.axes if ax.get_title().startswith("batch")]
    assert [ax.get_title() for ax in tops] == ["batch 64", "batch 256"]
    crosses = [line for line in tops[0].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in crosses) == 1


def test_no_two_looks_share_a_colour_or_a_glyph():
    for looks in (plots.LOOKS, plots.ARM_LOOKS.values(), plots.ordered_looks(range(6)).values()):
        colours, glyphs = zip(*looks, strict=True)
        assert len(set(map(tuple, colours))) == len(set(glyphs)) == len(looks)


def test_a_known_arm_keeps_its_look_and_a_new_name_takes_a_remaining_one():
    looks = plots.looks(["mine", "BN", "yours"])
    assert looks["BN"] == plots.ARM_LOOKS["BN"] and len(set(looks.values())) == 3
    assert plots.in_order(["mine", "BN", "NF+AGC", "BN"]) == ["NF+AGC", "BN", "mine"]


def test_an_interval_shows_its_bounds_and_one_seed_has_none():
    _, (ax,) = plots.panels(1, 1, (3, 3))
    plots.intervals(ax, [1, 2], [0.5, 0.7], [0.4, np.nan], [0.8, np.nan], plots.LOOKS[0])
    ((bars,),) = (line for *_, line in ax.containers)
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.4, 0.8], [0.7, 0.7]]


def test_the_glyph_shows_how_a_training_ended():
    _, (ax,) = plots.panels(1, 1, (3, 3))
    x = pd.Series([1.0, 2.0, 3.0, 4.0])
    ended = {"pruned": x.isin([2.0, 4.0]), "failed": x > 2.5}  # the last one is pruned because it failed
    plots.trials(ax, x, x, plots.ARM_LOOKS["BN"], "BN", **ended)
    assert {line.get_label(): line.get_xdata().tolist() for line in ax.lines} == {
        "BN": [1.0], "BN, pruned": [2.0], "BN, failed": [3.0, 4.0],
    }  # fmt: skip
    hollow = next(line for line in ax.lines if line.get_label() == "BN, pruned")
    assert hollow.get_markerfacecolor() == "none" and points(ax, "x") == [(3.0, 3.0), (4.0, 4.0)]


def test_a_cell_with_some_failed_seeds_shows_its_accuracy_and_a_cross():
    _, (ax,) = plots.panels(1, 1, (3, 3))
    x = pd.Series([1.0, 2.0, 3.0])
    plots.accuracy_map(ax, x, x, x / 10, failed=[0.0, 0.5, 1.0])
    assert ax.collections[0].get_offsets()[:, 0].tolist() == [1.0, 2.0]
    assert ax.collections[0].get_array().tolist() == [0.1, 0.2] and points(ax, "x") == [(2.0, 2.0), (3.0, 3.0)]


def test_accuracy_over_the_rate_is_a_mean_with_crosses_where_a_seed_failed():
    _, (ax,) = plots.panels(1, 1, (3, 3))
    rows = [
        {"arm": arm, "lr": lr, "val_acc": 0.5 + 0.1 * seed, "failed": int(arm == "NF" and lr == 4 and seed == 1)}
        for arm in ("NF", "BN") for lr in (1, 4) for seed in (0, 1)
    ]  # fmt: skip
    plots.over_rate(ax, pd.DataFrame(rows), "arm", plots.looks(["NF", "BN"]), bounds=lambda v: (min(v), max(v)))
    assert points(ax, "x") == [(4, pytest.approx(0.55))]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["1", "4"]
    line = next(line for line in ax.lines if line.get_label() == "NF")
    assert line.get_ydata().tolist() == pytest.approx([0.55, 0.55]) and line.get_marker() == "s"


def test_an_axis_of_many_rates_marks_some_of_them():
    _, (ax,) = plots.panels(1, 1, (3, 3))
    plots.rate_axis(ax, [0.1 * 2**i for i in range(13)])
    assert ax.get_xticks().tolist() == pytest.approx([0.1 * 4**i for i in range(7)])


def test_a_legend_outside_names_each_label_once():
    figure, (left, right) = plots.panels(1, 2, (6, 3))
    for ax in (left, right):
        ax.plot([0, 1], label="a")
    right.plot([1, 0], label="b")
    plots.legend_outside(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    figure.draw_without_rendering()
    top = legend.get_window_extent().y1
    assert all(top <= ax.get_tightbbox().y0 for ax in (left, right)), "the legend covers a panel"


def points(ax, marker=None):
    """Return the points that lines without a stroke draw, with this marker or with any."""
    drawn = [line for line in ax.lines if line.get_linestyle() == "None" and marker in (None, line.get_marker())]
    return [point for line in drawn for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_a_collapsed_training_has_a_glyph_of_its_own():
    (ax,) = plots.panels(1, 1, (4, 3))[0].axes
    x = pd.Series([1.0, 2.0, 3.0])
    failed, collapsed = pd.Series([0, 1, 1]), pd.Series([False, False, True])
    plots.trials(ax, x, x, plots.ARM_LOOKS["BN"], "BN", failed=failed, collapsed=collapsed)
    drawn = {line.get_marker(): list(line.get_xdata()) for line in ax.lines}
    assert drawn["x"] == [2] and drawn["+"] == [3] and len(drawn) == 3

    (ax,) = plots.panels(1, 1, (4, 3))[0].axes
    rows = pd.DataFrame({"arm": "BN", "lr": [1.0, 2.0, 3.0], "val_acc": [0.5, 0.1, 0.1], "failed": [0, 1, 1],
                         "outcome": ["complete", "diverged", "collapsed"]})  # fmt: skip
    plots.over_rate(ax, rows, "arm", plots.looks(["BN"]))
    drawn = {line.get_marker(): list(line.get_xdata()) for line in ax.lines}
    assert drawn["x"] == [2] and drawn["+"] == [3]
