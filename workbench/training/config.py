"""A training as pure data: the configuration that goes in, the result that comes out, and the key that names both."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field

import numpy as np

from workbench.errors import WorkbenchError, unknown
from workbench.files import sha256
from workbench.networks import builder_hash, check_name, is_user_network, located, source_of
from workbench.optim import scaled_lr
from workbench.source import source_hash
from workbench.weights.released import find

# Where a training runs, not what it computes: what cannot be read either ends it or is passed over from there.
EXECUTION_FIELDS = ("device", "workers", "unreadable", "recompute", "progress")
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


STREAMED = ("eval_size", "rand_augment", "workers")  # fields that need stream=True
AT_LEAST_0 = ("rand_augment", "rand_augment_layers", "workers")
CHOICES = {"precision": ("float32", "bfloat16", "bfloat16_copies"), "unreadable": ("refuse", "skip")}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training's numbers depend on, and nothing else. Plain values only; it round-trips through JSON.

    Exactly one of `epochs` and `steps` sets the length. The peak learning rate is base_lr * batch_size / 256, or
    base_lr where `scale_lr` is False. Evaluation is in float32, whatever the precision.
    Raises: WorkbenchError, at construction, for values that cannot be meant.
    """

    model: str = "nf_resnet_tiny"
    model_args: dict = field(default_factory=dict)  # overrides of create_model
    weights: str | None = None  # start from these: a file, or a released model's name
    data: str = "mnist5k"  # a name, or the path of a folder of images
    image_size: int | None = None  # for folders of images of several sizes
    train_size: int | None = None  # use only the first so many training images
    stream: bool = False  # a folder too large for memory: crops of random boxes, as for ImageNet, made in workers
    eval_size: int | None = None  # of streamed test images, pixels a side; None: as image_size, or as the model's
    unreadable: str = "refuse"  # an image that cannot be read: refuse it, or skip it for the next
    batch_size: int = 256
    micro_batch: int | None = None  # accumulate gradients over parts of this size; None: the whole batch at once
    base_lr: float = 0.1  # at batch 256
    scale_lr: bool = True  # with the batch size; False: base_lr is the peak rate at any
    clip: float | None = 0.01  # AGC's lambda; None: no clipping
    clip_eps: float = 1e-3
    clip_exempt: list = field(default_factory=list)  # by name, "stage4", "first_conv", "vectors" (see param_groups)
    clip_head: bool = False  # the classifier's weight, too, which the paper leaves out
    clip_norm: float | None = None  # in place of AGC: clip by the norm of the whole gradient, at this
    weight_decay: float = 2e-5  # on weights; not on gains and biases
    momentum: float = 0.9  # Nesterov
    warmup: float = 0.05  # the share of the steps over which the rate rises
    final_lr: float = 0.0  # where the cosine ends
    epochs: float | None = None
    steps: int | None = None
    label_smoothing: float = 0.0
    flip: bool | None = None  # mirror images; None: where the data set allows it
    shift: int | None = None  # move images by up to so many pixels; None: an eighth of their side
    cutout: int | None = None  # the side of a square that is blanked, pixels
    mix: bool = False  # MixUp on half of each batch, CutMix on the other
    mixup_alpha: float = 0.2
    rand_augment: float | None = None  # its level, where 10 is the scale; of streamed images
    rand_augment_layers: int = 4
    ema: float | None = None  # decay of the average of the weights, which is evaluated beside them
    sam_rho: float | None = None  # sharpness-aware minimisation, uphill on a fifth of each part of the batch
    telemetry_every: int | None = None  # steps between rows of what AGC saw in each parameter
    signal_every: int | None = None  # steps between measurements of signal propagation, block by block
    curvature_every: int | None = None  # steps between measurements of sharpness and of the gradient noise scale
    precise_bn: int | None = None  # at the end also evaluate with BatchNorm's statistics of so many training images
    eval_every: int | None = (
        None  # steps between evaluations on the validation split; None: an epoch, at most a quarter of the steps
    )
    evaluate_test: bool = False  # read the test split at the end: confirmation runs only
    precision: str = "float32"  # bfloat16: autocast; bfloat16_copies: on copies of the parameters, as the authors
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    workers: int | None = None  # processes that make streamed images; None: one a core, at most 16
    recompute: bool = False  # activations, in backward: less memory for a little more time, and no other bit
    progress: bool = True

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, wants_float = getattr(self, f.name), f.type in (float, float | None)
            if isinstance(value, np.generic):  # from a table; a checkpoint takes plain numbers only
                value = value.item()
                object.__setattr__(self, f.name, value)
            if wants_float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, float(value))  # 1 and 1.0 are one configuration, with one key
            elif not isinstance(value, f.type) or (isinstance(value, bool) and f.type not in (bool, bool | None)):
                none = " (for none write null)" if str(value).lower() in ("none", "null", "no", "off", "") else ""
                kind = getattr(f.type, "__name__", f.type)
                raise WorkbenchError(f"`{f.name}` (={value!r}) must be of type {kind}{none}.")
        check_name(self.model)
        if (self.epochs is None) == (self.steps is None):
            raise WorkbenchError(f"give exactly one of `epochs` (={self.epochs}) and `steps` (={self.steps}).")
        for name in (
            "batch_size",
            "micro_batch",
            "base_lr",
            "clip",
            "clip_eps",
            "clip_norm",
            "precise_bn",
            "epochs",
            "steps",
            "train_size",
            "image_size",
            "eval_size",
            "cutout",
            "mixup_alpha",
            "sam_rho",
            "telemetry_every",
            "signal_every",
            "curvature_every",
            "eval_every",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                cure = " (None switches clipping off)" if name in ("clip", "clip_norm") else ""
                raise WorkbenchError(f"`{name}` (={value}) must be above 0 and finite{cure}.")
        for name in ("weight_decay", "momentum", "warmup", "final_lr", "label_smoothing", "shift", "ema", *AT_LEAST_0):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise WorkbenchError(f"`{name}` (={value}) must be at least 0 and finite.")
        for name in ("momentum", "label_smoothing", "ema"):
            if (getattr(self, name) or 0) >= 1:
                raise WorkbenchError(f"`{name}` (={getattr(self, name)}) must be below 1.")
        if self.warmup > 1:
            raise WorkbenchError(f"`warmup` (={self.warmup}) is a share of the steps, so at most 1.")
        if self.micro_batch and self.micro_batch > self.batch_size:
            raise WorkbenchError(
                f"`micro_batch` (={self.micro_batch}) must be at most `batch_size` (={self.batch_size})."
            )
        if self.final_lr > self.lr:
            raise WorkbenchError(f"`final_lr` (={self.final_lr}) must be at most the peak rate (={self.lr:g}).")
        if self.clip_norm is not None and self.clip is not None:
            raise WorkbenchError(
                f"`clip_norm` (={self.clip_norm}) takes the place of AGC: set clip=null too, or leave it out."
            )
        if self.clip_head and self.clip is None:
            raise WorkbenchError("`clip_head` is of AGC: set `clip` too, or leave it out.")
        if self.precise_bn is not None and self.stream:
            raise WorkbenchError(f"`precise_bn` (={self.precise_bn}) is of images in memory, not of streamed ones.")
        if self.telemetry_every and self.clip is None:
            raise WorkbenchError("`telemetry_every` shows what AGC saw: set `clip` too, or leave it out.")
        for name in STREAMED if not self.stream else ():
            if getattr(self, name) is not None:
                raise WorkbenchError(f"`{name}` (={getattr(self, name)}) is of streamed images: set stream=true too.")
        if self.stream and self.shift:
            raise WorkbenchError(f"`shift` (={self.shift}) is of images in memory; streamed ones are random crops.")
        if (self.rand_augment or 0) > 30:
            raise WorkbenchError(f"`rand_augment` (={self.rand_augment}) must be at most 30, where 10 is the scale.")
        for name in self.clip_exempt:
            if not isinstance(name, str):
                raise WorkbenchError(f"`clip_exempt` (={self.clip_exempt}) must be a list of names or patterns.")
        for name in self.model_args:
            if not isinstance(name, str) or name in ("num_classes", "in_channels"):
                raise WorkbenchError(
                    f"`model_args` (={self.model_args}) takes names of the model's arguments; classes and channels "
                    "follow the data."
                )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

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
