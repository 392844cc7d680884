"""Claim 4, which layers to clip. Evidence: the verdict flips with the table, and figures show failures."""

import numpy as np
import pandas as pd
import pytest

from workbench.claims import layer_study as claim
from workbench.errors import WorkbenchError
from workbench.optim import param_groups

ARMS = list(claim.arms(0.01, [1, 2]))
LRS = [0.4, 0.8, 1.6, 3.2]


def tables(stable=None, **difference):
    """Eight seeds. By arm, `difference` to the paper's accuracy, and `stable`, the largest rate that trains."""
    names = {"head": claim.HEAD, "first": claim.FIRST, "stage1": claim.STAGE.format(1)}
    shift = {names[name]: value for name, value in difference.items()}
    rng, rows = np.random.default_rng(0), []
    for arm in ARMS:
        luck = rng.normal(0, 0.002, 8)
        for s, accuracy in enumerate(0.5 + shift.get(arm, 0) + luck - luck.mean(), start=100):
            rows.append({"arm": arm, "seed": s, "lr": 0.8, "test_acc": accuracy, "failed": 0})
    screened = [
        {
            "arm": arm,
            "lr": lr,
            "seed": s,
            "failed": int(lr > (stable or {}).get(arm, 1.6)),
            "val_acc": 0.45 if lr == 0.8 else 0.4,
        }
        for arm in ARMS
        for lr in LRS
        for s in (0, 1)
    ]
    return pd.DataFrame(screened), pd.DataFrame(rows)


def test_selected_arms_are_added_to_the_two_of_the_contrast():
    assert list(claim.arms(0.01, [1, 2], [claim.HEAD])) == [claim.PAPER, claim.HEAD]
    assert list(claim.arms(0.01, [1, 2], ["without stage 2"])) == [claim.PAPER, claim.HEAD, "without stage 2"]
    with pytest.raises(WorkbenchError, match=r"without stage 3.*without stage [12]"):
        claim.arms(0.01, [1, 2], ["without stage 3"])


def test_the_verdict_flips_with_the_effect_of_clipping_the_head():
    costs, gains, none = (claim.judge(*tables(head=d)) for d in (-0.02, 0.02, 0.0))
    assert costs.holds is True and costs.effect.p < 0.01
    assert gains.holds is False and gains.effect.value.low > 0
    assert none.holds is None
    assert costs.effect.value.mean == pytest.approx(-0.02, abs=0.003) and costs.effect.value.n == 8


def test_the_first_convolution_is_equal_only_within_the_margin():
    equal, other = (claim.judge(*tables(first=d)).table.set_index("arm").loc[claim.FIRST] for d in (0.0, -0.01))
    assert equal.p_equal < 0.05 < other.p_equal and other.points == pytest.approx(-1, abs=0.3)


def test_the_margin_of_stability_is_in_doublings_and_missing_if_every_rate_failed():
    stage, lost = claim.STAGE.format(1), claim.STAGE.format(2)
    stable = {stage: 0.4, lost: 0.1}
    screened, confirmed = tables(stable)
    table = claim.summary(screened, confirmed).set_index("arm")
    assert table.margin[stage] == -2 and np.isnan(table.margin[lost]) and table.margin[claim.PAPER] == 0
    rows = claim.judge(screened, confirmed).table.set_index("arm")
    assert rows.doublings[stage] == -2 and np.isnan(rows.doublings[lost]) and rows.doublings[claim.HEAD] == 0
    assert not rows.last_tried.any()


def test_the_table_marks_a_largest_stable_rate_that_is_the_last_one_tried():
    stage = claim.STAGE.format(1)
    rows = claim.judge(*tables({arm: 3.2 for arm in ARMS} | {stage: 0.8})).table.set_index("arm")
    assert rows.largest_stable[claim.PAPER] == 3.2 and rows.last_tried[claim.PAPER] and rows.last_tried[claim.HEAD]
    assert rows.doublings[stage] == -2 and not rows.last_tried[stage] and rows.doublings[claim.HEAD] == 0


def test_holm_covers_the_other_arms_but_not_the_contrast():
    screened, confirmed = tables(head=-0.02, stage1=-0.02)
    table = claim.summary(screened, confirmed).set_index("arm")
    family = table.drop([claim.PAPER, claim.HEAD])
    assert np.isnan(table.p_holm[claim.HEAD]) and family.p_holm.notna().all()
    stage = claim.STAGE.format(1)
    assert family.p_holm[stage] == pytest.approx(len(family) * table.p[stage])


def test_the_figure_crosses_failed_seeds():
    screened, confirmed = tables(dict.fromkeys(ARMS, 0.8))
    confirmed.loc[confirmed.arm == claim.HEAD, "failed"] = 1
    left, right, _ = claim.figure(screened, confirmed).axes
    assert sum(len(line.get_xdata()) for line in left.lines if line.get_marker() == "x") == 8
    crossed = [len(line.get_xdata()) for line in right.lines if line.get_marker() == "x"]
    assert crossed == [2 * len(ARMS)]  # rates 1.6 and 3.2


def test_each_arm_leaves_out_the_part_that_it_names():
    """Check the parameter groups of the network itself."""
    from workbench.data import load_dataset
    from workbench.training import TrainConfig
    from workbench.training.setup import groups_of, initial_model

    data = load_dataset("mnist5k")
    exempt = {}
    for arm, fields in claim.arms(0.01, [1, 2, 3]).items():
        config = TrainConfig(steps=1, **fields)
        groups = groups_of(initial_model(config, data), config)
        exempt[arm] = {name for g in groups if g["clip"] is None for name in g["names"]}
    paper = exempt[claim.PAPER]
    assert len(paper) == 1 and exempt[claim.HEAD] == set()
    assert {n.partition(".")[0] for n in exempt[claim.FIRST] - paper} == {"stem"}
    stages = [exempt[claim.STAGE.format(n)] - paper for n in (1, 2, 3)]
    assert all(stages) and not stages[0] & stages[1] and not stages[1] & stages[2]
    everything = {n for g in param_groups(initial_model(TrainConfig(steps=1), data)) for n in g["names"]}
    assert exempt[claim.NONE] == everything and exempt[claim.VECTORS] < everything
