"""A training as pure data: the configuration that goes in, the result that comes out, and the key that names both."""

import ast
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from workbench.errors import WorkbenchError, unknown
from workbench.models import zoo
from workbench.optim import scaled_lr

EXECUTION_FIELDS = ("device", "progress")  # they change where a training runs, not what it computes
FAILURE_SHARE = 0.8  # failed: final training loss above this share of ln(classes), the loss of guessing, or not finite
DIVERGED_SHARE = (
    20.0  # diverged: a step's loss above this share of ln(classes), or not finite; the training stops there
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training's numbers depend on, and nothing else. Plain values only; it round-trips through JSON.

    Exactly one of `epochs` and `steps` sets the length. The peak learning rate is base_lr * batch_size / 256.
    Raises: WorkbenchError, at construction, for values that cannot be meant.
    """

    model: str = "nf_resnet_tiny"
    model_args: dict = field(default_factory=dict)  # overrides of create_model
    data: str = "mnist5k"  # a name, or the path of a folder of images
    image_size: int | None = None  # for folders of images of several sizes
    train_size: int | None = None  # use only the first so many training images
    batch_size: int = 256
    micro_batch: int | None = None  # accumulate gradients over parts of this size; None: the whole batch at once
    base_lr: float = 0.1  # at batch 256
    clip: float | None = 0.01  # AGC's lambda; None: no clipping
    clip_eps: float = 1e-3
    clip_exempt: list = field(default_factory=list)  # parameters by name, "stage4", "first_conv" (see param_groups)
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
    ema: float | None = None  # decay of the average of the weights, which is evaluated beside them
    sam_rho: float | None = None  # sharpness-aware minimisation, uphill on a fifth of the batch
    telemetry_every: int | None = None  # steps between rows of what AGC saw in each parameter
    eval_every: int | None = (
        None  # steps between evaluations on the validation split; None: an epoch, at most a quarter of the steps
    )
    evaluate_test: bool = False  # read the test split at the end: confirmation runs only
    precision: str = "float32"  # or bfloat16: autocast, parameters stay float32
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    progress: bool = True

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, wants_float = getattr(self, f.name), f.type in (float, float | None)
            if wants_float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, float(value))  # 1 and 1.0 are one configuration, with one key
            elif not isinstance(value, f.type) or (isinstance(value, bool) and f.type not in (bool, bool | None)):
                raise WorkbenchError(f"`{f.name}` (={value!r}) must be of type {getattr(f.type, '__name__', f.type)}.")
        if self.model not in zoo.MODELS:
            raise unknown("model", self.model, zoo.MODELS)
        if (self.epochs is None) == (self.steps is None):
            raise WorkbenchError(f"give exactly one of `epochs` (={self.epochs}) and `steps` (={self.steps}).")
        for name in (
            "batch_size",
            "micro_batch",
            "base_lr",
            "clip",
            "clip_eps",
            "epochs",
            "steps",
            "train_size",
            "image_size",
            "cutout",
            "mixup_alpha",
            "sam_rho",
            "telemetry_every",
            "eval_every",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                cure = " (None switches clipping off)" if name == "clip" else ""
                raise WorkbenchError(f"`{name}` (={value}) must be above 0 and finite{cure}.")
        for name in ("weight_decay", "momentum", "warmup", "final_lr", "label_smoothing", "shift", "ema"):
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
        if self.telemetry_every and self.clip is None:
            raise WorkbenchError("`telemetry_every` shows what AGC saw: set `clip` too, or leave it out.")
        if self.precision not in ("float32", "bfloat16"):
            raise unknown("precision", self.precision, ["float32", "bfloat16"])

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return scaled_lr(self.base_lr, self.batch_size)

    @property
    def name(self) -> str:
        """What a person calls this training: `nf_resnet26_cifar B1024 lr1.6 c0.04 s2`."""
        clip = f" c{self.clip:g}" if self.clip is not None else ""
        return f"{self.model} B{self.batch_size} lr{self.lr:.3g}{clip} s{self.seed}"

    def replace(self, **changes) -> "TrainConfig":
        """The same with some fields changed; unknown ones are refused."""
        return TrainConfig.from_dict({**dataclasses.asdict(self), **changes})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("field of TrainConfig", name, known)
        return cls(**values)


def training_key(config: TrainConfig, data_digest: str) -> str:
    """Names a training: SHA-256 over its configuration without execution fields, its data and the code that computes
    it."""
    return _digest({"config": _identity(config), "data": data_digest, "code": code_hash()})


def config_id(config: TrainConfig) -> str:
    """Groups the seeds of one configuration: a short hash of everything but the seed."""
    return _digest({k: v for k, v in _identity(config).items() if k != "seed"})[:8]


def _identity(config: TrainConfig) -> dict:
    return {k: v for k, v in config.to_dict().items() if k not in EXECUTION_FIELDS}


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """A hash of the code that a training runs: a comment or a new plot makes nothing stale, a changed layer does."""
    return source_hash("models", "optim", "data", "training")


@lru_cache
def source_hash(*parts: str) -> str:
    """A hash of the syntax trees, without docstrings, of these folders of the package ("." is all of it)."""
    package = Path(__file__).resolve().parent.parent
    files = sorted(f for part in parts for f in (package / part).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(package)}\n{syntax_without_docstrings(file.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def syntax_without_docstrings(source: str) -> str:
    """The syntax tree of Python source as text: equal for two sources that differ in comments, layout or docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@dataclass(frozen=True)
class TrainResult:
    """What a training gave. `outcome` is complete, diverged, pruned or failed; `history` has one row an evaluation.

    History rows: step, epoch, samples_seen, lr, train_loss (mean cross-entropy since the last row, without
    smoothing; against the mixed labels where images are mixed), val_loss, val_acc, seconds; ema_val_loss and
    ema_val_acc with an average; where AGC clips, clipped_share and ratio_p99 of that step.
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
