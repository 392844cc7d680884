"""One question on several networks: how far their answers agree.

Each network has its own study and its own verdict. Over networks, every network is one observation, however many seeds
it has.
"""

import pandas as pd

from workbench.lab.statistics.intervals import difference_p, side, t_interval, with_ci
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.verdict import Effect, Precondition, Verdict

ARM, AGAINST = "NF+AGC", "BN"


def over_networks(text: str, confirmed: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]) -> Verdict:
    """Judge whether NF+AGC is ahead of BN over networks.

    Args:
        text: The precondition, which every network must meet.
        confirmed: By study the confirmed trainings of its network. Columns arm, seed, test_acc.
        verdicts: By study its own verdict.

    Returns:
        The verdict. Its effect is the mean over networks of the difference in test accuracy. The table has the
        networks.
    """
    ahead = {}
    for study, trainings in confirmed.items():
        values = by_seed(trainings).reindex(columns=[ARM, AGAINST])
        ahead[study] = t_interval((values[ARM] - values[AGAINST]).dropna())
    means = [interval.mean for interval in ahead.values()]
    effect = Effect(
        f"test accuracy of {ARM} minus {AGAINST}, mean over networks", t_interval(means), difference_p(means), True
    )
    opposite = min(means) < 0 < max(means)
    answers = "Networks answer oppositely" if opposite else "Networks answer alike"
    mean = with_ci(effect.value.map(lambda value: 100 * value), " points", "+.1f", "network")
    headline = f"{answers}: {ARM} is ahead of {AGAINST} by {mean}."
    rows = [
        {"network": study, "points": 100 * interval.mean, "low": 100 * interval.low, "high": 100 * interval.high,
         "n": interval.n, "its_question": verdicts[study].effect.name, "its_answer": verdicts[study].effect.text}
        for study, interval in ahead.items()
    ]  # fmt: skip
    measured = ", ".join(verdict.precondition.measured for verdict in verdicts.values() if verdict.precondition)
    met = all(verdict.testable for verdict in verdicts.values())
    return Verdict(side(effect.value), effect, headline, pd.DataFrame(rows)).on(Precondition(text, measured, met))
