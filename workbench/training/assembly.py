"""Build the parts of one training from its configuration and its images."""

import math
import time
from collections.abc import Iterable

import torch

from workbench.data import Dataset
from workbench.data.augment import seed_for
from workbench.data.folders import ImageFolder
from workbench.outcomes import DIVERGED_SHARE
from workbench.training.config import TrainConfig, training_key
from workbench.training.distributed import World
from workbench.training.gradients import Gradients
from workbench.training.inputs import Inputs
from workbench.training.observers import Observer, measurements
from workbench.training.precision import Bfloat16Copies
from workbench.training.scoring import evaluate, few_images
from workbench.training.setup import example_input, initial_model, settle_layout
from workbench.training.streamed import StreamedInputs
from workbench.training.update import Update
from workbench.training.watch import LossWatch


class Training:
    """The parts of a training that the loop uses, and the history.

    Args:
        config: The configuration.
        data: The images.
        world: The processes of the training.
        device: Where the network is.
        total_steps: Steps of the whole training.
        observers: Called before the measurements of the configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset | ImageFolder,
        world: World,
        device: torch.device,
        total_steps: int,
        observers: Iterable[Observer],
    ):
        self._started = time.perf_counter()
        self.config, self.data, self.world, self.device, self.total_steps = config, data, world, device, total_steps
        self.key = training_key(config, data.digest)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(seed_for(config.seed, "init"))
        self.model = initial_model(config, data).to(device)
        example = example_input(config, data)
        self.layout = settle_layout(self.model, config, example)
        net = world.wrapped(Bfloat16Copies(self.model) if config.precision == "bfloat16_copies" else self.model)
        self.update = Update(self.model, config, total_steps, example)
        self.gradients = Gradients(self.model, net, config, world, device)
        self.inputs: Inputs | StreamedInputs
        if isinstance(data, ImageFolder):
            self.inputs = StreamedInputs(config, data, world, device)
        else:
            self.inputs = Inputs(config, data, world, device)
        n = len(self.inputs.train)
        self.eval_every = config.eval_every or max(1, min(n // config.batch_size, total_steps // 4))
        self.losses = LossWatch(DIVERGED_SHARE * math.log(len(data.classes)), every=1 if device.type == "cpu" else 10)
        images = lambda count: few_images(self.inputs.val(), count)
        self.measurements = measurements(config, self.update.agc_stats, images) if world.first else []
        self.observers = [*observers, *self.measurements]
        self.history: list[dict] = []

    @property
    def seconds(self) -> float:
        """Seconds of the training so far, also before an interruption."""
        return time.perf_counter() - self._started

    def evaluates(self, step: int) -> bool:
        """Return whether this step ends with a row of the history."""
        return step % self.eval_every == 0 or step == self.total_steps

    def scores(self) -> dict[str, float]:
        """Return loss and accuracy on the validation split, of the weights and of their average."""
        val_loss, val_acc = evaluate(self.model, self.inputs.val())
        scores = {"val_loss": val_loss, "val_acc": val_acc}
        if self.update.ema is not None:
            scores["ema_val_loss"], scores["ema_val_acc"] = evaluate(self.update.ema.model, self.inputs.val())
        return scores

    def add_row(self, step: int, lr: float, scores: dict[str, float]) -> dict:
        """Add a row to the history, as `TrainResult` describes it, and return it."""
        samples = step * self.config.batch_size
        row = {
            "step": step,
            "epoch": samples / len(self.inputs.train),
            "samples_seen": samples,
            "lr": lr,
            "train_loss": self.losses.mean_since_last(),
            **scores,
            "seconds": self.seconds,
            **self.update.clipped(),
        }
        self.history.append(row)
        for observer in self.observers:
            observer.at_row(row)
        return row

    def state_dict(self) -> dict:
        """Return all state after the steps so far, except the weights."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        unreadable = sorted(self.inputs.unreadable)
        return {"history": self.history, "seconds": self.seconds, "unreadable": unreadable, **state}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.history = state["history"]
        self._started -= state["seconds"]
        self.inputs.unreadable.update(state["unreadable"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict:
        return {"update": self.update, "losses": self.losses, **{part.name: part for part in self.measurements}}
