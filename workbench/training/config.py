"""A training as data: its configuration, its result, and the key that identifies both."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from workbench.bounded_json import parse_object
from workbench.errors import WorkbenchError, unknown
from workbench.files import sha256
from workbench.memory_layout import LAYOUTS
from workbench.networks import builder_hash, check_name, is_user_network, located, source_of
from workbench.optim import scaled_lr
from workbench.source import source_hash
from workbench.training.detached.schema import check_line
from workbench.training.fields import checked, knob, unmet_needs
from workbench.weights.released import find

# Files of this folder that no training runs: plans and their runner, presets, and measurements.
NOT_TRAINING = (
    "training/detached",
    "training/worker_task.py",
    "training/presets.py",
    "training/evaluation.py",
    "training/first_batch.py",
    "training/step_time.py",
    "training/__main__.py",
)
FROM_DATA = ("num_classes", "in_channels")  # arguments of a model that follow from the data
AUTO = "auto"
PRECISIONS = ("float32", "bfloat16", "bfloat16_copies")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the numbers of a training depend on, as plain values.

    Each field has its default, meaning and bounds in its line. The execution fields, such as `device`, say how the
    training runs. A configuration round-trips through JSON.

    Exactly one of `epochs` and `steps` sets the length. The peak learning rate is ``base_lr * batch_size / 256``, or
    ``base_lr`` if `scale_lr` is False. Evaluation always uses float32.

    Raises:
        WorkbenchError: At construction, for values that are not allowed, alone or together.
    """

    model: str = knob("nf_resnet_tiny", "the network, by a name that `networks.build_network` accepts")
    model_args: dict = knob(dict, "overrides of the model's arguments")
    weights: str | None = knob(None, "initial weights: a file, or the name of a released model")
    data: str = knob("mnist5k", "name of a data set, or path of a folder of images")
    image_size: int | None = knob(None, "side of the images in pixels, for folders with several sizes", above=0)
    train_size: int | None = knob(None, "number of training images to use, counted from the first", above=0)
    stream: bool = knob(False, "read a folder that is too large for memory; worker processes make random crops")
    eval_size: int | None = knob(
        None, "side of streamed test images in pixels; None: image_size, or the model's", needs="stream", above=0
    )
    unreadable: str = knob(
        "refuse", "what to do with an image that cannot be read", choices=("refuse", "skip"), execution=True
    )
    batch_size: int = knob(256, "images per step", above=0)
    micro_batch: int | None = knob(
        None, "images per micro-batch, whose gradients are added up; None: the whole batch", above=0
    )
    base_lr: float = knob(0.1, "peak learning rate at batch size 256", above=0)
    scale_lr: bool = knob(
        True, "scale the learning rate with the batch size; False: base_lr is the peak at any batch size"
    )
    clip: float | None = knob(0.01, "AGC's lambda; None switches clipping off", above=0)
    clip_eps: float = knob(1e-3, "AGC's lower bound on the weight norm of a unit", above=0)
    clip_exempt: list = knob(list, 'parameters that AGC does not clip: names, "stage4", "first_conv", "vectors"')
    clip_head: bool = knob(False, "also clip the classifier's weight, which the paper does not clip", needs="clip")
    clip_norm: float | None = knob(
        None, "largest norm of the whole gradient, used without AGC; None switches clipping off", above=0
    )
    weight_decay: float = knob(2e-5, "decay of weights, but not of gains and biases", at_least=0)
    momentum: float = knob(0.9, "Nesterov momentum", at_least=0, below=1)
    warmup: float = knob(0.05, "share of the steps in which the learning rate rises", at_least=0, at_most=1)
    final_lr: float = knob(0.0, "learning rate at the end of the cosine", at_least=0)
    epochs: float | None = knob(None, "length in passes over the training images", above=0)
    steps: int | None = knob(None, "length in steps", above=0)
    label_smoothing: float = knob(0.0, "share of each label that all classes get alike", at_least=0, below=1)
    flip: bool | None = knob(None, "mirror images at random; None: if the data set allows it")
    shift: int | None = knob(
        None, "largest random shift of an image in pixels; None: an eighth of its side", at_least=0
    )
    cutout: int | None = knob(None, "side in pixels of a square that is blanked", above=0)
    mix: bool = knob(False, "MixUp on one half of each batch, CutMix on the other")
    mixup_alpha: float = knob(0.2, "MixUp draws shares from Beta(alpha, alpha)", above=0)
    rand_augment: float | None = knob(
        None, "RandAugment's level, where 10 is the end of the usual scale", needs="stream", at_least=0, at_most=30
    )
    rand_augment_layers: int = knob(4, "RandAugment operations per image", at_least=0)
    ema: float | None = knob(
        None, "decay of the moving average of the weights, which is evaluated too", at_least=0, below=1
    )
    sam_rho: float | None = knob(None, "radius of SAM, which climbs on one fifth of each micro-batch", above=0)
    telemetry_every: int | None = knob(
        None, "steps between rows of AGC's statistics, one row per parameter", needs="clip", above=0
    )
    signal_every: int | None = knob(None, "steps between measurements of signal propagation, block by block", above=0)
    curvature_every: int | None = knob(None, "steps between measurements of sharpness and gradient noise", above=0)
    precise_bn: int | None = knob(
        None, "number of training images, augmented, for precise BatchNorm statistics, evaluated at the end", above=0
    )
    eval_every: int | None = knob(
        None, "steps between evaluations; None: one epoch, at most a quarter of the steps", above=0
    )
    evaluate_test: bool = knob(False, "read the test split at the end; for confirmation runs only")
    layout: str = knob(
        AUTO,
        "memory order of weights and images; auto: the faster one in which the network runs",
        choices=(AUTO, *LAYOUTS),
    )
    precision: str = knob(
        "float32",
        "bfloat16: autocast; bfloat16_copies: bfloat16 copies of the parameters, as the authors train",
        choices=PRECISIONS,
    )
    seed: int = knob(0, "seed of all random draws")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1 or mps", execution=True)
    workers: int | None = knob(
        None, "processes that make streamed images; None: one per core", needs="stream", at_least=0, execution=True
    )
    recompute: bool = knob(
        False, "compute activations again in the backward pass: less memory, more time, the same bits", execution=True
    )
    progress: bool = knob(True, "show a progress bar", execution=True)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        check_name(self.model)
        for message in (*unmet_needs(self), *_contradictions(self)):
            raise WorkbenchError(message)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return scaled_lr(self.base_lr, self.batch_size) if self.scale_lr else self.base_lr

    @property
    def name(self) -> str:
        """The name of this training for people: `nf_resnet26_cifar B1024 lr1.6 c0.04 s2`."""
        clip = f" c{self.clip:g}" if self.clip is not None else f" n{self.clip_norm:g}" if self.clip_norm else ""
        return f"{self.model} B{self.batch_size} lr{self.lr:.3g}{clip} s{self.seed}"

    def replace(self, **changes) -> "TrainConfig":
        """Return a copy with these fields changed.

        A change of `model` removes `source` from `model_args`, because another network has other code.

        Raises:
            WorkbenchError: For an unknown field, and as at construction.
        """
        values = self.to_dict()
        if changes.get("model", self.model) != self.model:
            values["model_args"].pop("source", None)
        return TrainConfig.from_dict(values | changes)

    def to_dict(self) -> dict:
        """Return all fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Make a configuration from fields by name.

        Raises:
            WorkbenchError: For an unknown field, and as at construction.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("field of TrainConfig", name, known)
        return cls(**values)


EXECUTION_FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.metadata["execution"])
STREAMED = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.metadata["needs"] == "stream")


def _contradictions(c: TrainConfig) -> Iterator[str]:
    """Yield an error message for each contradiction between values, and for wrong names."""
    if (c.epochs is None) == (c.steps is None):
        yield f"Set exactly one of `epochs` and `steps`, got {c.epochs} and {c.steps}."
    if c.micro_batch and c.micro_batch > c.batch_size:
        yield f"`micro_batch` must be at most `batch_size` (={c.batch_size}), got {c.micro_batch}."
    if c.final_lr > c.lr:
        yield f"`final_lr` must be at most the peak learning rate (={c.lr:g}), got {c.final_lr}."
    if c.clip_norm is not None and c.clip is not None:
        yield f"`clip_norm` (={c.clip_norm}) replaces AGC. Set clip=null too, or leave out `clip_norm`."
    if c.precise_bn is not None and c.stream:
        yield f"`precise_bn` (={c.precise_bn}) needs images in memory. Leave it out, or set stream=false."
    if c.shift and c.stream:
        yield f"`shift` (={c.shift}) needs images in memory. Leave it out: streamed images are random crops."
    if not all(isinstance(name, str) for name in c.clip_exempt):
        yield f"`clip_exempt` must be a list of names or patterns, got {c.clip_exempt}."
    if not all(isinstance(name, str) and name not in FROM_DATA for name in c.model_args):
        rule = f"`model_args` must hold names of the model's arguments, got {c.model_args}"
        yield f"{rule}. Leave out {' and '.join(FROM_DATA)}, which follow from the data."


def planned(config: TrainConfig) -> TrainConfig:
    """Return the configuration with a user's network fully named, and with its `source`.

    `source` is the hash of the network's code. The full name is valid in every folder. The code is read but not run. A
    configuration that already has a `source` is returned unchanged, so it stays readable when the file changes or
    disappears.

    Raises:
        WorkbenchError: If the user's file or module is missing.
    """
    if not is_user_network(config.model) or "source" in config.model_args:
        return config
    named = {"source": source_of(config.model), **config.model_args}
    return dataclasses.replace(config, model=located(config.model), model_args=named)


def training_key(config: TrainConfig, data_digest: str) -> str:
    """Return the key of a training: a hash of everything that its numbers depend on.

    The key is a SHA-256, 64 hex digits. It covers the configuration without execution fields, the data, and the code
    that trains. For a user's network or one of `normfree` it also covers the code that builds it. For initial weights
    it also covers their bytes and the code that reads them.

    Args:
        config: The configuration.
        data_digest: The hash of the data, see `inputs.source_digest`.
    """
    config = planned(config)
    # data and weights count by their content and not by their names
    named = {k: v for k, v in _identity(config).items() if k not in ("data", "weights")}
    identity = {"config": named, "data": data_digest, "code": code_hash()}
    if config.weights is not None:
        identity["weights"] = [sha256(find(config.weights)), source_hash("weights")]
    if builder := builder_hash(config.model):
        identity["network"] = builder
    return _digest(identity)


def config_id(config: TrainConfig) -> str:
    """Return a short hash of everything but the seed, which groups the seeds of a configuration."""
    return _digest({k: v for k, v in _identity(planned(config)).items() if k != "seed"})[:8]


def _identity(config: TrainConfig) -> dict:
    return {k: v for k, v in config.to_dict().items() if k not in EXECUTION_FIELDS}


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """Return a hash of the code that every training runs.

    Comments, docstrings and presets do not change the hash. A changed layer does.
    """
    return source_hash("models", "optim", "data", "training", "outcomes.py", "memory_layout.py", leave_out=NOT_TRAINING)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training, as data.

    A row of `history` has these columns:

        step, epoch, samples_seen   where the training is
        lr, seconds                 the learning rate of this step, and the time so far
        train_loss                  mean cross-entropy since the last row, without smoothing; against the mixed
                                    labels if images are mixed
        val_loss, val_acc           on the validation split
        ema_val_loss, ema_val_acc   of the moving average of the weights, if there is one
        clipped_share, ratio_p99    of AGC in this step, if it clips
        grad_norm                   of this step before clipping, with `clip_norm`

    Attributes:
        key: See `training_key`.
        config: The configuration.
        outcome: One of `OUTCOMES`, see workbench.outcomes.
        history: One row per evaluation.
        metrics: Final values. `failed` is 1 if the training diverged or collapsed, else 0. `classes` is their number.
        cause: Of a divergence, a collapse or an error.
        seconds: Time of the training, also before an interruption.
        device: Name of the GPU, or the kind of device and machine.
        versions: Of torch and Python.
        data_digest: Hash of the data.
        code: Hash of the code, see `code_hash`.
        layout: Memory order of weights and images. Empty: an older version, which did not record it.
    """

    key: str
    config: TrainConfig
    outcome: str
    history: list[dict]
    metrics: dict[str, float]
    cause: str | None = None
    seconds: float = 0.0
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""
    code: str = ""
    layout: str = ""

    def row(self) -> dict:
        """Return configuration and final metrics as one flat row of a tidy table."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in (*EXECUTION_FIELDS, "model_args")}
        config["clip_exempt"] = ", ".join(self.config.clip_exempt)
        return {
            **config,
            "lr": self.config.lr,
            "layout": self.layout,
            **self.metrics,
            "outcome": self.outcome,
            "key": self.key,
        }

    def to_json(self) -> str:
        """Return the result as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainResult":
        """Read a result that `to_json` wrote.

        Raises:
            WorkbenchError: For text that is not a result, and for a configuration that is not allowed.
        """
        values = parse_object(text, finite=False)  # a loss may be infinite
        check_line(values)
        try:
            return cls(**{**values, "config": TrainConfig.from_dict(values["config"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkbenchError(f"this is not a result ({type(error).__name__}: {error}).") from error
