"""Check that a plan can run on this machine: its code, data, weights and configurations.

All checks come before the first training.
"""

import dataclasses
import importlib.util

import torch

from workbench.errors import WorkbenchError
from workbench.networks import build_network
from workbench.training.config import TrainConfig, code_hash, training_key
from workbench.training.detached.plan import Plan, Planned
from workbench.training.inputs import source, source_digest
from workbench.training.setup import initial_model, steps_of


def ready(plan: Plan, other_code: bool = False) -> list[Planned]:
    """Return the trainings of a plan, each once, with their keys on this machine.

    Args:
        plan: The plan.
        other_code: Accept a plan that other code made.

    Raises:
        WorkbenchError: If code, data or weights differ from the plan's, or if a configuration cannot run here.
    """
    if plan.code != code_hash() and not other_code:
        raise WorkbenchError(
            f"The plan was made by code {plan.code}, but the code here is {code_hash()}. Check out the same commit, "
            "write the plan again, or use --other-code (its study will not recognise the results)."
        )
    digests, trainings = {}, {}
    for training in plan.trainings:
        config = training.config
        where = (config.data, config.stream)
        try:
            if where not in digests:
                digests[where] = source_digest(config)
            if digests[where] != training.data_digest:
                raise WorkbenchError(
                    f"`data` (={config.data}) has the digest {digests[where]} here and {training.data_digest} in the "
                    "plan. Copy the same files to this machine, or write the plan again with these files."
                )
            _refuse_what_cannot_run(config)
            key = training_key(config, digests[where])
            if key != training.key and plan.code == code_hash():
                raise WorkbenchError(
                    f"its key is {key[:16]} here and {training.key[:16]} in the plan. Copy the same initial weights to "
                    "this machine, and do not edit the lines of the plan."
                )
        except WorkbenchError as error:
            raise WorkbenchError(f"{config.name} of the plan cannot run here: {error}") from error
        trainings.setdefault(key, dataclasses.replace(training, key=key))
    return list(trainings.values())


def _refuse_what_cannot_run(config: TrainConfig) -> None:
    data = source(config)
    steps_of(config, len(data.train))
    if config.curvature_every and importlib.util.find_spec("scipy") is None:
        raise WorkbenchError(
            f"`curvature_every` (={config.curvature_every}) needs scipy. Run `pip install scipy`, or leave it out."
        )
    with torch.random.fork_rng(devices=[]):
        if config.weights is not None:
            initial_model(config, data)
        else:
            with torch.device("meta"):
                build_network(config.model, len(data.classes), data.channels, **config.model_args)
