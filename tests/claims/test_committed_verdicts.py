"""The verdicts of the committed tables. Evidence: values that were recorded with

python -c "
from workbench.claims.judging import judged
from workbench.claims.registry import all_claims
for one in judged(list(all_claims()), where='docs'):
    if (v := one.verdict) is not None:
        e = v.effect
        print(one.claim.study, v.answer, e.value.mean, e.value.low, e.value.high, e.value.n, e.p)"
"""

import math
import re

import pytest

from workbench.claims.judging import adjusted, judged
from workbench.claims.registry import all_claims

# The answer after Holm's adjustment; estimate, bounds and n of the effect; p before the adjustment
RECORDED = {
    "signal_propagation": (
        "Holds",
        0.02644076555565087,
        0.008299936445023387,
        0.044581594666278354,
        5,
        4.605422764766161e-05,
    ),
    "threshold_scaling": ("Not decided", 0.75, 0.7000000000000001, 0.75, 232, 1.0),
    "layer_study": (
        "Not testable here",
        -0.01566249999999999,
        -0.030992484617660358,
        -0.0003325153823396203,
        8,
        0.04636951209827394,
    ),
    "small_batch": (
        "Not testable here",
        0.056924999999999996,
        0.04402310478107626,
        0.06982689521892373,
        8,
        1.6166979850622973e-05,
    ),
    "stability_boundary": (
        "Holds",
        3.6449717676025273,
        3.3850271568328623,
        3.9049163783721923,
        8,
        5.87720111208089e-09,
    ),
    "ablation": (
        "Not testable here",
        -0.05093749999999999,
        -0.06392641178556448,
        -0.0379485882144355,
        8,
        0.0002106266267057636,
    ),
    "sam_ema": (
        "Not testable here",
        -0.060125000000000005,
        -0.07075367412994285,
        -0.04949632587005716,
        8,
        3.0586974904876034e-06,
    ),
    "latency": (
        "Not testable here",
        -0.0030125000000000256,
        -0.30383189712893566,
        0.2978068971289356,
        2,
        0.9194269906277356,
    ),
    "transfer": (
        "Not testable here",
        0.0007500000000000076,
        -0.008906468176689218,
        0.010406468176689233,
        8,
        0.1663058581055443,
    ),
    "accumulation": (
        "Holds",
        0.0015875000000000056,
        0.0004416959316259721,
        0.002733304068374039,
        8,
        0.00010186986560908096,
    ),
    "large_batch": ("Holds", 1.0, 0.6305833524471808, 1.0, 8, 0.0078125),
    "protocols": (
        "Not testable here",
        -0.010887499999999994,
        -0.02740245419502062,
        0.005627454195020632,
        8,
        0.16298676188371794,
    ),
    "race": (
        "Not testable here",
        0.02066249999999996,
        0.007555665041208056,
        0.03376933495879186,
        8,
        0.001852647128595547,
    ),
    "slow_start": ("Holds", 0.0722125, 0.05931968674795089, 0.0851053132520491, 8, 3.2711104257394372e-06),
}
NUMBER = r"[+-]?\d+(?:\.\d+)?"
SCALES = (lambda v: v, lambda v: 100 * v, lambda v: 2**v)  # unchanged, in points or percent, from doublings
COUNTED = r"\d+ (?:seeds|trainings|initialisations|networks)"
HEADLINE = rf"\D*?({NUMBER})[^\d()]* \(95% CI ({NUMBER}) to ({NUMBER}), {COUNTED}\)\D*\."


@pytest.fixture(scope="module")
def verdicts():
    judgements = judged(list(all_claims()), where="docs")
    return {each.claim.study: each.verdict for each in judgements if each.verdict is not None}


def test_every_committed_study_is_recorded(verdicts):
    assert verdicts.keys() == RECORDED.keys()


@pytest.mark.parametrize("study", RECORDED)
def test_a_verdict_has_its_recorded_values(verdicts, study):
    answer, mean, low, high, n, p = RECORDED[study]
    verdict = verdicts[study]
    value = verdict.effect.value
    assert verdict.answer == answer and value.n == n
    assert (value.mean, value.low, value.high, verdict.effect.p) == pytest.approx((mean, low, high, p), rel=1e-9)


@pytest.mark.parametrize("study", RECORDED)
def test_a_headline_is_short_and_has_one_number_with_its_interval(verdicts, study):
    headline = verdicts[study].headline
    parts = re.fullmatch(HEADLINE, headline)
    assert parts, headline
    number, low, high = map(float, parts.groups())
    value, rounding = verdicts[study].effect.value, 0.5001 * 10.0 ** -len(parts[1].partition(".")[2])
    on_scales = ([scale(v) for v in (value.mean, value.low, value.high)] for scale in SCALES)
    assert [number, low, high] in [pytest.approx(scaled, abs=rounding) for scaled in on_scales]
    for text in (headline, adjusted(verdicts[study], 1.0).headline):
        assert len(text.split()) <= 25, text


@pytest.mark.parametrize("study", RECORDED)
def test_a_table_has_a_row_per_fact_and_its_first_column_names_it(verdicts, study):
    table = verdicts[study].table
    assert 2 <= len(table) <= 17
    names = table[table.columns[0]]
    assert all(isinstance(name, str) and name for name in names)
    assert not table.duplicated().any()


def test_only_claims_that_are_testable_are_in_holms_family():
    for each in judged(list(all_claims()), where="docs"):
        if each.verdict is not None and not each.verdict.testable:
            assert each.verdict.holds is None and math.isnan(each.p_holm)
