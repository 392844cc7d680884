"""The verdicts of the committed tables. Evidence: the values of 2026-11-30, before verdicts had tables, recorded with

python -c "
from workbench.claims.judging import judged
from workbench.claims.registry import all_claims
for one in judged(list(all_claims()), where='docs'):
    if (v := one.verdict) is not None:
        e = v.effect  # today v.effect.value, and v.effect.p
        print(one.claim.study, v.holds, e.mean, e.low, e.high, e.n, v.p)"
"""

import re

import pytest

from workbench.claims.judging import adjusted, judged
from workbench.claims.registry import all_claims

# holds after Holm's adjustment; estimate, bounds and n of the effect; p before the adjustment
RECORDED = {
    "signal_propagation": (
        True,
        0.02644076555565087,
        0.008299936445023387,
        0.044581594666278354,
        5,
        4.605422764766161e-05,
    ),
    "large_batch": (True, 1.0, 0.6305833524471808, 1.0, 8, 0.0078125),
    "threshold_scaling": (False, 0.6000000000000001, 0.55, 0.65, 232, 6.288772532373721e-05),
    "layer_study": (None, -0.01566249999999999, -0.030992484617660358, -0.0003325153823396203, 8, 0.04636951209827394),
    "small_batch": (True, 0.056924999999999996, 0.04402310478107626, 0.06982689521892373, 8, 1.6166979850622973e-05),
    "accumulation": (
        True,
        0.0015875000000000056,
        0.0004416959316259721,
        0.002733304068374039,
        8,
        0.00010186986560908096,
    ),
    "stability_boundary": (True, 3.915656720802925, 3.7239855028811615, 4.107327938724689, 8, 4.2624490029215086e-10),
    "ablation": (None, -0.004642857142857157, -0.011282975708246865, 0.00199726142253255, 8, 0.14223225097073794),
    "sam_ema": (False, -0.060125000000000005, -0.07075367412994285, -0.04949632587005716, 8, 3.0586974904876034e-06),
    "latency": (False, 0.34330455996130155, 0.23829728367411473, 0.44831183624848836, 8, 0.00041811749607052377),
    "transfer": (None, 0.0007500000000000076, -0.008906468176689218, 0.010406468176689233, 8, 0.1663058581055443),
    "protocols": (None, -0.010887499999999994, -0.02740245419502062, 0.005627454195020632, 8, 0.16298676188371794),
    "race": (True, 0.02066249999999996, 0.007555665041208056, 0.03376933495879186, 8, 0.001852647128595547),
    "slow_start": (True, 0.0722125, 0.05931968674795089, 0.0851053132520491, 8, 3.2711104257394372e-06),
}
NUMBER = r"[+-]?\d+(?:\.\d+)?"
SCALES = (lambda v: v, lambda v: 100 * v, lambda v: 2**v)  # unchanged, in points or percent, from doublings
HEADLINE = rf"\D*?({NUMBER})[^\d()]* \(95% CI ({NUMBER}) to ({NUMBER}), \d+ (?:seeds|trainings|initialisations)\)\D*\."


@pytest.fixture(scope="module")
def verdicts():
    judgements = judged(list(all_claims()), where="docs")
    return {each.claim.study: each.verdict for each in judgements if each.verdict is not None}


def test_every_committed_study_is_recorded(verdicts):
    assert verdicts.keys() == RECORDED.keys()


@pytest.mark.parametrize("study", RECORDED)
def test_a_verdict_has_its_recorded_values(verdicts, study):
    holds, mean, low, high, n, p = RECORDED[study]
    verdict = verdicts[study]
    value = verdict.effect.value
    assert verdict.holds is holds and value.n == n
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
    assert 2 <= len(table) <= 12
    names = table[table.columns[0]]
    assert all(isinstance(name, str) and name for name in names)
    assert not table.duplicated().any()


def test_holms_adjustment_is_the_last_row_if_it_makes_a_verdict_undecided(verdicts):
    """The contrast of layer_study has p = 0.046. Three p-values are at least as large, so Holm multiplies it by 3."""
    verdict = verdicts["layer_study"]
    assert verdict.effect.p < 0.05 and verdict.holds is None
    assert verdict.table.p_holm.iloc[-1] == pytest.approx(3 * verdict.effect.p)
