"""The gradient of a whole batch, from its parts: micro-batches, this process's share, and SAM's climb before them."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.once import standardized_once
from workbench.models.recompute import recomputed_activations
from workbench.optim import SAM
from workbench.optim.sam import sub_batch
from workbench.training.config import TrainConfig
from workbench.training.distributed import World, unsynchronised
from workbench.training.inputs import Part


class Gradients:
    """Called with the parts of a batch it leaves their gradient in `model`, and returns the loss.

    Args: `net` is what is called for the outputs: `model`, or it with its wrappers.
    """

    def __init__(self, model: nn.Module, net: nn.Module, config: TrainConfig, world: World, device: torch.device):
        self.model, self.net, self.config, self.world, self.device = model, net, config, world, device
        self.sam = SAM(model.parameters(), config.sam_rho) if config.sam_rho is not None else None
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        # DDP waits for every parameter's gradient within one backward; copies are made anew in every forward.
        self.share_weights = world.size == 1 and config.precision != "bfloat16_copies"

    def __call__(self, parts: list[Part]) -> Tensor:
        """Leaves the gradient of the batch that these are parts of; returns its cross-entropy, (), unsmoothed."""
        self.model.zero_grad(set_to_none=True)
        if self.sam is not None:
            with unsynchronised(self.net, True):  # each process climbs by its own gradient, as in the paper
                for x, y, share in first_samples(parts):
                    self._backward(x, y, share)
            self.sam.ascend()
        loss = torch.zeros((), device=self.device)
        shared = self.share_weights and len(parts) > 1
        with standardized_once(self.model) if shared else contextlib.nullcontext():
            for part in parts:
                with unsynchronised(self.net, not part.last):  # gradients are averaged over the processes
                    loss += self._backward(*part.made(), part.share * self.world.size) / self.world.size
        if self.sam is not None:
            self.sam.descend()
        return self.world.total(loss)

    def _backward(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """Adds the gradient of `share` times the mean loss; returns that share of the loss without smoothing."""
        recomputed = recomputed_activations(self.model) if self.config.recompute else contextlib.nullcontext()
        with self.autocast, recomputed:
            logits = self.net(x).float()
        (F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing) * share).backward()
        return F.cross_entropy(logits.detach(), y) * share


def first_samples(parts: list[Part]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """The first fifth of the samples of these parts: images, targets, and shares that sum to one."""
    n = left = sub_batch(sum(map(len, parts)))
    for part in parts:
        take = min(left, len(part))
        if take == 0:
            return
        x, y = part.made()
        yield x[:take], y[:take], take / n
        left -= take
