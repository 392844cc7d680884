"""What comes out of notebooks/own_network.ipynb: a recipe, lines for a loop of one's own, and the verdict."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data import Dataset
from workbench.lab.own.network import BN, NF
from workbench.lab.parameters import Range
from workbench.lab.recipes import recipe_text
from workbench.lab.session import Session
from workbench.lab.stats import Interval, paired_interval, t_interval
from workbench.lab.verdicts import Verdict
from workbench.models.own.networks import NORMFREE, sizes_taken
from workbench.probes.noise import NoiseScale
from workbench.training import TrainConfig
from workbench.training.inputs import source
from workbench.training.setup import steps_of

WEIGHTS = "weights.safetensors"
MARGIN = 0.005  # of accuracy, that the network without BatchNorm may lose and still count as good as with it
GOOD = 0.02  # validation accuracy below the best that still counts as good
END = 0.1  # of a range, on its scale, that counts as its end


def pasted(config: TrainConfig) -> str:
    """The training as a few lines of Python for a loop of one's own, which only need a `loader`."""
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
    """The line that makes the network; what it needs is added to `imports`."""
    args, classes, channels = dict(config.model_args), len(data.classes), data.channels
    if ":" not in config.model:
        said = _said({"num_classes": classes, "in_channels": channels, **args})
        if config.weights is not None:
            imports.add("from workbench.models.checkpoints import load_checkpoint")
            return f"model = load_checkpoint({json.dumps(config.weights)}, {said})"
        imports.add("from workbench.models import create_model")
        return f"model = create_model({json.dumps(config.model)}, {said})"
    own = config.model.removeprefix(NORMFREE)
    where, _, function = own.rpartition(":")
    made = f"{function}({_said({**sizes_taken(own, classes, channels), **args.get('arguments', {})})})"
    size = args["image_size"]
    imports |= {
        f"from {Path(where).stem if where.endswith('.py') else where} import {function}",
        "from workbench.models.normfree import normfree",
    }
    gain = args["skip_gain"]
    return f"model = normfree({made}, torch.zeros(2, {channels}, {size}, {size}), skip_gain={gain!r}).model"


def _said(arguments: Mapping) -> str:
    return ", ".join(f"{k}={json.dumps(v) if isinstance(v, str) else repr(v)}" for k, v in arguments.items())


def keep(config: TrainConfig, session: Session, folder: Path) -> str:
    """Writes recipe.yaml and loop.py beside the weights, keeps all three with the run, and says what they are for."""
    if session.planning:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe_text(config))
    (folder / "loop.py").write_text(pasted(config))
    files = [file for file in (folder / name for name in ("recipe.yaml", "loop.py", WEIGHTS)) if file.is_file()]
    for file in files:
        session.store.log_file(session.run_id, file, "own_network")
    said = {
        "recipe.yaml": "every number; ./run train FILE trains it again",
        "loop.py": "the lines below, for a loop of your own",
        WEIGHTS: f"the weights of seed {config.seed}; load_checkpoint(FILE, model) puts them into `model`",
    }
    return "\n".join(f"{file}: {said[file.name]}" for file in files)


def own_verdict(
    trials: pd.DataFrame,
    confirmed: pd.DataFrame,
    noise: NoiseScale | None = None,
    ranges: Mapping[str, float | dict | Range] | None = None,
) -> Verdict:
    """Is the network without BatchNorm as good as with it, within the margin, each at its own best rate?

    `trials`: arm, state, outcome, clip, lr, val_acc. `confirmed`: arm, seed, test_acc, outcome, failed, lr, clip,
    batch_size, weights; the seeds are paired. `ranges`: where `lr` and `clip` were searched, so that a best value near
    an end is told.
    """
    if confirmed.empty or NF not in set(confirmed.arm):
        nothing = Interval(np.nan, np.nan, np.nan, 0)
        sentence = "No trial without BatchNorm came to its end: lower the learning rates (`lr`), or give it more steps."
        return Verdict(sentence, None, "accuracy", nothing)
    by_seed = confirmed.pivot_table(index="seed", columns="arm", values="test_acc")
    nf = confirmed[confirmed.arm == NF].iloc[0]
    started = "" if pd.isna(nf.weights) else f" (started from {Path(nf.weights).name})"
    sentence = (
        f"Without BatchNorm{started}, at batch {nf.batch_size}, peak rate {nf.lr:.2g} and threshold {nf['clip']:.2g}: "
        f"{t_interval(by_seed[NF]):.1%} of the test split over {len(by_seed)} fresh seeds"
    )
    effect, name, holds = t_interval(by_seed[NF]), "test accuracy without BatchNorm", None
    if BN in by_seed:
        bn = confirmed[confirmed.arm == BN].iloc[0]
        effect, name = paired_interval(by_seed[NF], by_seed[BN]), "test accuracy without BatchNorm minus with"
        holds = True if effect.low > -MARGIN else False if effect.high < -MARGIN else None
        relation = {
            True: f"as good, within {MARGIN:.1%}, or better",
            False: f"worse by more than {MARGIN:.1%}",
            None: f"not decided at a margin of {MARGIN:.1%}: take more seeds, or more images",
        }[holds]
        sentence += f"; with it, at its own best rate {bn.lr:.2g}, {t_interval(by_seed[BN]):.1%}. That is {relation}"
    failed = ", ".join(f"{arm} {int(t.failed.sum())} of {len(t)}" for arm, t in confirmed.groupby("arm"))
    slow = int((confirmed.failed.astype(bool) & (confirmed.outcome != "diverged")).sum())
    if slow:
        failed += f" ({slow} of these without diverging: the training loss is still high at the end; train longer)"
    sentence += f". Failed on fresh seeds: {failed}. {_region(trials)}{_ends_told(confirmed, ranges or {})}"
    return Verdict(
        f"{sentence}{_batches_said(noise, int(nf.batch_size))}", holds, name, effect, in_points=BN in by_seed
    )


def _region(trials: pd.DataFrame) -> str:
    done = trials[(trials.arm == NF) & (trials.state == "COMPLETE") & (trials.outcome == "complete")]
    good = done[done.val_acc >= done.val_acc.max() - GOOD]
    return (
        f"Thresholds from {good['clip'].min():.2g} to {good['clip'].max():.2g} were within {GOOD:.0%} of the best "
        f"({len(good)} of {int((trials.arm == NF).sum())} trials)."
    )


def _ends_told(confirmed: pd.DataFrame, ranges: Mapping[str, float | dict | Range]) -> str:
    """A sentence on the best values that lie in the first or last tenth of their range; empty where none does."""
    told = []
    for name, given in ranges.items():
        if isinstance(given, int | float):
            continue
        searched = Range.of(given)
        for arm, rows in confirmed.dropna(subset=name).groupby("arm"):
            value = rows[name].iloc[0]
            share = searched.share_below(value)
            if min(share, 1 - share) <= END:
                end = "low" if share < 0.5 else "high"
                told.append(f"`{name}` {value:.2g} of {arm} at the {end} end of {searched.low:g} to {searched.high:g}")
    return f" The best {', '.join(told)}: a better one may lie beyond, search further there." if told else ""


def _batches_said(noise: NoiseScale | None, batch_size: int) -> str:
    if noise is None:
        return ""
    low, high = noise.interval
    if not noise.noise_scale > 0 or (math.isinf(high) and low < batch_size):
        return f" Which batch size pays could not be told: {noise.note}."
    if low > batch_size:
        told = "larger batches still save steps"
    elif high < 2 * batch_size:
        told = "larger batches buy little"
    else:
        told = "this batch is about where larger ones buy little"
    size = (
        f"at least {low:.0f} images" if math.isinf(high) else f"{noise.noise_scale:.0f} images [{low:.0f}, {high:.0f}]"
    )
    return f" The gradient noise scale at the end is {size}: {told}."
