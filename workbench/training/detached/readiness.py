"""Whether a plan can run on this machine: code, data, weights and every configuration, checked before anything runs."""

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
    """Return the plan's trainings, each once, with the keys that they have here.

    Args:
        plan: As it was read.
        other_code: Accept a plan that other code made.

    Raises:
        WorkbenchError: For other code, data or weights than the plan's, and for a configuration that cannot run here.
    """
    if plan.code != code_hash() and not other_code:
        raise WorkbenchError(
            f"the plan was made by code {plan.code}, and here is {code_hash()}: check out the same commit here, write "
            "the plan with this one, or run it with --other-code, as trainings that the plan's study will not know."
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
                    "plan: bring the same files, or write the plan where these are."
                )
            _refuse_what_cannot_run(config)
            key = training_key(config, digests[where])
            if key != training.key and plan.code == code_hash():
                raise WorkbenchError(
                    f"its key is {key[:16]} here and {training.key[:16]} in the plan: bring the same weights to start "
                    "from, and leave the plan's lines as they were written."
                )
        except WorkbenchError as error:
            raise WorkbenchError(f"{config.name} of the plan cannot run here: {error}") from error
        trainings.setdefault(key, dataclasses.replace(training, key=key))
    return list(trainings.values())


def _refuse_what_cannot_run(config: TrainConfig) -> None:
    data = source(config)
    steps_of(config, len(data.train))
    if config.curvature_every and importlib.util.find_spec("scipy") is None:
        raise WorkbenchError("`curvature_every` needs scipy: `pip install scipy` here, or leave it out.")
    with torch.random.fork_rng(devices=[]):
        if config.weights is not None:
            initial_model(config, data)
        else:
            with torch.device("meta"):
                build_network(config.model, len(data.classes), data.channels, **config.model_args)
