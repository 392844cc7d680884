"""Engines. Evidence: a plan holds exactly the trainings that the store does not know, and nothing trains."""

import json

import pytest
from support.searches import BASE, SPACE, objective, session

from workbench.lab import Arm, run_all, search
from workbench.lab.executors.context import Context
from workbench.lab.jobs.engines import PlanIsWritten, is_planning
from workbench.lab.jobs.search import abandoned_trials
from workbench.training import training_key, worker_task
from workbench.training.inputs import source_digest

ARMS = [Arm("NF+AGC", BASE.replace(seed=seed)) for seed in range(3)]


@pytest.fixture
def plan(root, tmp_path, monkeypatch):
    """Return a function that turns this process into a planned notebook, and returns a reader of the plan."""
    file = tmp_path / "plan.jsonl"

    def begin():
        monkeypatch.setenv(*Context("mine", "full", "l", plan=file).environment().popitem())
        monkeypatch.setattr(worker_task, "train", lambda *args, **kwargs: pytest.fail("trained"))
        return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    return begin


def test_a_plan_holds_the_trainings_that_the_store_does_not_know(root, plan):
    mine = session(root)
    known = run_all(ARMS[:1], mine, role="confirm")
    lines = plan()
    assert is_planning()
    with pytest.raises(PlanIsWritten, match="2"):
        run_all(ARMS, mine, role="confirm")
    keys = [training_key(arm.config, source_digest(arm.config)) for arm in ARMS]
    assert [line["key"] for line in lines()] == keys[1:]
    assert {(line["arm"], line["role"], line["study"]) for line in lines()} == {("NF+AGC", "confirm", "mine")}
    assert run_all(ARMS[:1], mine).run_id.tolist() == known.run_id.tolist()
    assert [run.status for run in mine.store.search("trainings", "full")] == ["FINISHED"]


def test_a_search_plans_its_first_trials_together(root, plan):
    mine, lines = session(root), plan()
    with pytest.raises(PlanIsWritten):
        search(objective, SPACE, trials=20, session=mine)
    assert len(lines()) == 8 and len({line["key"] for line in lines()}) == 8
    assert abandoned_trials() == []  # each trial freed its slot and its parameters
