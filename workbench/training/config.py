"""A training as pure data: the configuration that goes in, the result that comes out, and the key that names both."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from workbench.errors import WorkbenchError, unknown
from workbench.files import sha256
from workbench.networks import builder_hash, check_name, is_user_network, located, source_of
from workbench.optim import scaled_lr
from workbench.source import source_hash
from workbench.training.fields import checked, knob, unmet_needs
from workbench.weights.released import find

# In the folder training, but no part of a training: plans and what runs them, recipes, and measurements.
NOT_TRAINING = (
    "training/detached",
    "training/worker_task.py",
    "training/presets.py",
    "training/evaluation.py",
    "training/step_time.py",
    "training/__main__.py",
)
FAILURE_SHARE = 0.8  # failed: final training loss above this share of ln(classes), the loss of guessing, or not finite
DIVERGED_SHARE = (
    20.0  # diverged: a step's loss above this share of ln(classes), or not finite; the training stops there
)
FROM_DATA = ("num_classes", "in_channels")  # arguments of a model that follow the data
PRECISIONS = ("float32", "bfloat16", "bfloat16_copies")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training's numbers depend on, and nothing else. Plain values only; it round-trips through JSON.

    Each field has its default, its meaning and its bounds in its line. Exactly one of `epochs` and `steps` sets the
    length. The peak learning rate is base_lr * batch_size / 256, or base_lr where `scale_lr` is False. Evaluation is in
    float32, whatever the precision.

    Raises:
        WorkbenchError: At construction, for values that cannot be meant.
    """

    model: str = knob("nf_resnet_tiny", "the network, by any name that `networks.build_network` takes")
    model_args: dict = knob(dict, "overrides of the model's arguments")
    weights: str | None = knob(None, "what to start from: a file, or a released model's name")
    data: str = knob("mnist5k", "a data set's name, or the path of a folder of images")
    image_size: int | None = knob(None, "pixels a side, for folders of images of several sizes", above=0)
    train_size: int | None = knob(None, "how many of the training images are used, from the first on", above=0)
    stream: bool = knob(False, "read a folder too large for memory, as random crops made by worker processes")
    eval_size: int | None = knob(
        None, "pixels a side of streamed test images; None: image_size, or the model's", needs="stream", above=0
    )
    unreadable: str = knob(
        "refuse", "what becomes of an image that cannot be read", choices=("refuse", "skip"), execution=True
    )
    batch_size: int = knob(256, "images in a step", above=0)
    micro_batch: int | None = knob(
        None, "images in a part whose gradients are added up; None: the whole batch", above=0
    )
    base_lr: float = knob(0.1, "the peak learning rate at batch size 256", above=0)
    scale_lr: bool = knob(True, "scale the rate with the batch size; False: base_lr is the peak rate at any")
    clip: float | None = knob(0.01, "AGC's lambda; None switches clipping off", above=0)
    clip_eps: float = knob(1e-3, "AGC's floor of a unit's weight norm", above=0)
    clip_exempt: list = knob(list, 'parameters that AGC leaves alone: names, "stage4", "first_conv", "vectors"')
    clip_head: bool = knob(False, "clip the classifier's weight too, which the paper leaves out", needs="clip")
    clip_norm: float | None = knob(
        None, "the most for the norm of the whole gradient, without AGC; None switches clipping off", above=0
    )
    weight_decay: float = knob(2e-5, "on weights, not on gains and biases", at_least=0)
    momentum: float = knob(0.9, "Nesterov momentum", at_least=0, below=1)
    warmup: float = knob(0.05, "the share of the steps over which the rate rises", at_least=0, at_most=1)
    final_lr: float = knob(0.0, "the rate at which the cosine ends", at_least=0)
    epochs: float | None = knob(None, "the length in passes over the training images", above=0)
    steps: int | None = knob(None, "the length in steps", above=0)
    label_smoothing: float = knob(0.0, "the share of a label that all classes have", at_least=0, below=1)
    flip: bool | None = knob(None, "mirror images; None: where the data set allows it")
    shift: int | None = knob(
        None, "the most pixels that images are moved by; None: an eighth of their side", at_least=0
    )
    cutout: int | None = knob(None, "pixels a side of a square that is blanked", above=0)
    mix: bool = knob(False, "MixUp on half of each batch, CutMix on the other")
    mixup_alpha: float = knob(0.2, "MixUp draws shares from Beta(alpha, alpha)", above=0)
    rand_augment: float | None = knob(
        None, "RandAugment's level, where 10 is the scale", needs="stream", at_least=0, at_most=30
    )
    rand_augment_layers: int = knob(4, "RandAugment's operations on an image", at_least=0)
    ema: float | None = knob(
        None, "decay of the average of the weights, which is evaluated next to them", at_least=0, below=1
    )
    sam_rho: float | None = knob(None, "radius of SAM, which climbs on a fifth of each part of the batch", above=0)
    telemetry_every: int | None = knob(
        None, "steps between rows of what AGC saw in each parameter", needs="clip", above=0
    )
    signal_every: int | None = knob(None, "steps between measurements of signal propagation, block by block", above=0)
    curvature_every: int | None = knob(None, "steps between measurements of sharpness and gradient noise", above=0)
    precise_bn: int | None = knob(
        None, "training images whose BatchNorm statistics are also evaluated at the end", above=0
    )
    eval_every: int | None = knob(
        None, "steps between evaluations; None: an epoch, at most a quarter of the steps", above=0
    )
    evaluate_test: bool = knob(False, "read the test split at the end: confirmation runs only")
    precision: str = knob(
        "float32", "bfloat16: autocast; bfloat16_copies: copies of the parameters, as the authors", choices=PRECISIONS
    )
    seed: int = knob(0, "seed of every random draw")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1 or mps", execution=True)
    workers: int | None = knob(
        None, "processes that make streamed images; None: one a core", needs="stream", at_least=0, execution=True
    )
    recompute: bool = knob(
        False, "compute activations again in backward: less memory, more time, the same bits", execution=True
    )
    progress: bool = knob(True, "show a progress bar", execution=True)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        check_name(self.model)
        for sentence in (*unmet_needs(self), *_contradictions(self)):
            raise WorkbenchError(sentence)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return scaled_lr(self.base_lr, self.batch_size) if self.scale_lr else self.base_lr

    @property
    def name(self) -> str:
        """What a person calls this training: `nf_resnet26_cifar B1024 lr1.6 c0.04 s2`."""
        clip = f" c{self.clip:g}" if self.clip is not None else f" n{self.clip_norm:g}" if self.clip_norm else ""
        return f"{self.model} B{self.batch_size} lr{self.lr:.3g}{clip} s{self.seed}"

    def replace(self, **changes) -> "TrainConfig":
        """The same with some fields changed; unknown ones are refused. Another network has another `source`."""
        values = self.to_dict()
        if changes.get("model", self.model) != self.model:
            values["model_args"].pop("source", None)
        return TrainConfig.from_dict(values | changes)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("field of TrainConfig", name, known)
        return cls(**values)


EXECUTION_FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.metadata["execution"])
STREAMED = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.metadata["needs"] == "stream")


def _contradictions(c: TrainConfig) -> Iterator[str]:
    """Yield a sentence for each pair of values that do not go together, and for names that are none."""
    if (c.epochs is None) == (c.steps is None):
        yield f"Give exactly one of `epochs` (={c.epochs}) and `steps` (={c.steps})."
    if c.micro_batch and c.micro_batch > c.batch_size:
        yield f"`micro_batch` (={c.micro_batch}) must be at most `batch_size` (={c.batch_size})."
    if c.final_lr > c.lr:
        yield f"`final_lr` (={c.final_lr}) must be at most the peak rate (={c.lr:g})."
    if c.clip_norm is not None and c.clip is not None:
        yield f"`clip_norm` (={c.clip_norm}) replaces AGC. Set clip=null too, or leave `clip_norm` out."
    if c.precise_bn is not None and c.stream:
        yield f"`precise_bn` (={c.precise_bn}) needs images in memory. Leave it out, or set stream=false."
    if c.shift and c.stream:
        yield f"`shift` (={c.shift}) moves images in memory. Leave it out: streamed images are random crops."
    if not all(isinstance(name, str) for name in c.clip_exempt):
        yield f"`clip_exempt` (={c.clip_exempt}) must be a list of names or patterns."
    if not all(isinstance(name, str) and name not in FROM_DATA for name in c.model_args):
        given = f"`model_args` (={c.model_args}) takes names of the model's arguments"
        yield f"{given}. Leave out {' and '.join(FROM_DATA)}: classes and channels follow the data."


def planned(config: TrainConfig) -> TrainConfig:
    """The configuration with a user's network named from everywhere, and with the hash of its code as `source`.

    A configuration that has a `source` stays as it is: it is pure data, readable when the file has changed or is gone.
    The code is read and not run.

    Raises:
        WorkbenchError: If the user's file or module is missing.
    """
    if not is_user_network(config.model) or "source" in config.model_args:
        return config
    named = {"source": source_of(config.model), **config.model_args}
    return dataclasses.replace(config, model=located(config.model), model_args=named)


def training_key(config: TrainConfig, data_digest: str) -> str:
    """Name a training by what its numbers depend on: SHA-256, 64 hex digits.

    Covers the configuration without execution fields, the data, and the code that trains. For a user's network, or one
    of `normfree`, also the code that builds it; for weights to start from, their bytes and the code that reads them.
    """
    config = planned(config)
    named = {k: v for k, v in _identity(config).items() if k not in ("data", "weights")}  # by what is in them
    identity = {"config": named, "data": data_digest, "code": code_hash()}
    if config.weights is not None:
        identity["weights"] = [sha256(find(config.weights)), source_hash("weights")]
    if builder := builder_hash(config.model):
        identity["network"] = builder
    return _digest(identity)


def config_id(config: TrainConfig) -> str:
    """Groups the seeds of one configuration: a short hash of everything but the seed."""
    return _digest({k: v for k, v in _identity(planned(config)).items() if k != "seed"})[:8]


def _identity(config: TrainConfig) -> dict:
    return {k: v for k, v in config.to_dict().items() if k not in EXECUTION_FIELDS}


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """A hash of the code that every training runs: a comment or a preset makes nothing stale, a changed layer does."""
    return source_hash("models", "optim", "data", "training", leave_out=NOT_TRAINING)


@dataclass(frozen=True)
class TrainResult:
    """What a training gave. `outcome` is complete, diverged, pruned or failed; `history` has one row an evaluation.

    History rows: step, epoch, samples_seen, lr, train_loss (mean cross-entropy since the last row, without
    smoothing; against the mixed labels where images are mixed), val_loss, val_acc, seconds; ema_val_loss and
    ema_val_acc with an average; where AGC clips, clipped_share and ratio_p99 of that step; with clip_norm, grad_norm of
    that step, before clipping.
    `metrics` has the final values; `failed` there is the failure rule, 0 or 1.
    """

    key: str
    config: TrainConfig
    outcome: str
    history: list[dict]
    metrics: dict[str, float]
    cause: str | None = None  # of a divergence
    seconds: float = 0.0
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""
    code: str = ""

    def row(self) -> dict:
        """Configuration and final metrics as one flat row of a tidy table."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in (*EXECUTION_FIELDS, "model_args")}
        config["clip_exempt"] = ", ".join(self.config.clip_exempt)
        return {**config, "lr": self.config.lr, **self.metrics, "outcome": self.outcome, "key": self.key}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainResult":
        values = json.loads(text)
        return cls(**{**values, "config": TrainConfig.from_dict(values["config"])})
