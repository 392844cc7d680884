"""Files that notebooks/own_network.ipynb writes: a recipe, a training loop, the weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from workbench.data import Dataset
from workbench.lab.studies.recipes import recipe_text
from workbench.lab.studies.session import Session
from workbench.networks import NORMFREE, sizes_taken
from workbench.training import TrainConfig
from workbench.training.inputs import source
from workbench.training.setup import steps_of

WEIGHTS = "weights.safetensors"


def pasted(config: TrainConfig) -> str:
    """Write the training as a few lines of Python for your own loop. They need only a `loader`."""
    data = source(config)
    total = steps_of(config, len(data.train))
    imports = {"from workbench.optim import AGC, param_groups, warmup_cosine"}
    model = _lines_of_model(config, data, imports)
    mean, std = ([round(v, 4) for v in t.tolist()] for t in (data.mean, data.std))
    smoothing = f", label_smoothing={config.label_smoothing:g}" if config.label_smoothing else ""
    exempt = ", ".join(f'{json.dumps(name)}: {{"clip": None}}' for name in config.clip_exempt)
    overrides = f", overrides={{{exempt}}}" if exempt else ""
    groups = f"param_groups(model, weight_decay={config.weight_decay!r}, clip={config.clip!r}{overrides})"
    sgd = f"lr={config.lr!r}, momentum={config.momentum!r}, nesterov={config.momentum > 0}"
    final = f", {config.final_lr / config.lr!r}" if config.final_lr else ""
    lines = [
        "import torch",
        *sorted(imports),
        "",
        model,
        f"optimizer = torch.optim.SGD({groups}, {sgd})",
        f"agc = AGC(optimizer, eps={config.clip_eps!r})  # clips in every optimizer.step()",
        f"schedule = warmup_cosine(optimizer, {config.warmup * total:g}, {total}{final})",
        f"for x, y in loader:  # {total} batches of {config.batch_size}: (image / 255 - {mean}) / {std}, by channel",
        "    optimizer.zero_grad()",
        f"    torch.nn.functional.cross_entropy(model(x), y{smoothing}).backward()",
        "    optimizer.step()",
        "    schedule.step()",
    ]
    return "\n".join(lines) + "\n"


def _lines_of_model(config: TrainConfig, data: Dataset, imports: set[str]) -> str:
    """Return the line that makes the network, and add its imports to `imports`."""
    args, classes, channels = dict(config.model_args), len(data.classes), data.channels
    if ":" not in config.model:
        arguments = _arguments_text({"num_classes": classes, "in_channels": channels, **args})
        if config.weights is not None:
            imports.add("from workbench.weights import load_checkpoint")
            return f"model = load_checkpoint({json.dumps(config.weights)}, {arguments})"
        imports.add("from workbench.models import create_model")
        return f"model = create_model({json.dumps(config.model)}, {arguments})"
    network = config.model.removeprefix(NORMFREE)
    module, _, function = network.rpartition(":")
    call = f"{function}({_arguments_text({**sizes_taken(network, classes, channels), **args.get('arguments', {})})})"
    size = args["image_size"]
    imports |= {
        f"from {Path(module).stem if module.endswith('.py') else module} import {function}",
        "from workbench.normfree import normfree",
    }
    gain = args["skip_gain"]
    return f"model = normfree({call}, torch.zeros(2, {channels}, {size}, {size}), skip_gain={gain!r}).model"


def _arguments_text(arguments: Mapping) -> str:
    return ", ".join(f"{k}={json.dumps(v) if isinstance(v, str) else repr(v)}" for k, v in arguments.items())


def keep(config: TrainConfig, session: Session, folder: Path) -> str:
    """Write recipe.yaml and loop.py next to the weights, and keep all three with the run.

    Args:
        config: The training.
        session: The notebook's session. Without a run nothing is written.
        folder: Where the files go.

    Returns:
        A line per file that says what it is for.
    """
    if session.run_id is None:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe_text(config))
    (folder / "loop.py").write_text(pasted(config))
    files = [file for file in (folder / name for name in ("recipe.yaml", "loop.py", WEIGHTS)) if file.is_file()]
    for file in files:
        session.store.log_file(session.run_id, file, "own_network")
    purposes = {
        "recipe.yaml": "all settings; ./run train FILE trains it again",
        "loop.py": "the lines below, for your own loop",
        WEIGHTS: f"the weights of seed {config.seed}; load_checkpoint(FILE, model) loads them into `model`",
    }
    return "\n".join(f"{file}: {purposes[file.name]}" for file in files)
