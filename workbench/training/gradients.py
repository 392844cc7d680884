"""The gradient of a whole batch: over its micro-batches and all processes, and with SAM."""

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
    """The gradient of a batch, which a call leaves in the parameters of a network.

    Args:
        model: The network.
        net: What is called for the outputs: `model`, or `model` in its wrappers.
        config: The configuration.
        world: The processes of the training.
        device: Where the network is.
    """

    def __init__(self, model: nn.Module, net: nn.Module, config: TrainConfig, world: World, device: torch.device):
        self.model, self.net, self.config, self.world, self.device = model, net, config, world, device
        self.sam = SAM(model.parameters(), config.sam_rho) if config.sam_rho is not None else None
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        # DDP expects every gradient within the backward pass, but shared weights give theirs later. Bfloat16 copies
        # are made again in every forward, so nothing can be shared.
        self.share_weights = world.size == 1 and config.precision != "bfloat16_copies"

    def __call__(self, parts: list[Part]) -> Tensor:
        """Leave the gradient of the whole batch in the network, and return its cross-entropy.

        Args:
            parts: The micro-batches of this process.

        Returns:
            () over all processes, without label smoothing.
        """
        self.model.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        shared = self.share_weights and self.sam is None and len(parts) > 1
        with standardized_once(self.model) if shared else contextlib.nullcontext():
            for part in parts:
                x, y = part.made()
                with self._uphill(x, y), unsynchronised(self.net, not part.last):
                    torch.manual_seed(part.seed)  # the network draws the same values as without SAM
                    # times the size, because gradients are averaged over the processes
                    loss += self._backward(x, y, part.share * self.world.size) / self.world.size
        return self.world.total(loss)

    @contextlib.contextmanager
    def _uphill(self, x: Tensor, y: Tensor) -> Iterator[None]:
        """Move the weights uphill as SAM does, and back at the end.

        The direction is the gradient of the first fifth of these samples. Every part climbs by its gradient, as every
        device does in the paper. So a process behaves like a micro-batch.
        """
        if self.sam is None:
            yield
            return
        accumulated = [p.grad for p in self.sam.params]
        self.model.zero_grad(set_to_none=True)
        n = sub_batch(len(x))
        with unsynchronised(self.net, True):
            self._backward(x[:n], y[:n], 1.0)
        self.sam.ascend()
        for p, grad in zip(self.sam.params, accumulated, strict=True):
            p.grad = grad
        yield
        self.sam.descend()

    def _backward(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """Add the gradient of `share` times the mean loss.

        Returns:
            () is `share` times the mean loss without label smoothing.
        """
        recomputed = recomputed_activations(self.model) if self.config.recompute else contextlib.nullcontext()
        with self.autocast, recomputed:
            logits = self.net(x).float()
        (F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing) * share).backward()
        return F.cross_entropy(logits.detach(), y) * share
