"""Training step in channels last, compared with the same step on contiguous images and weights.

A step is forward, backward, AGC and SGD, as in workbench.training, for the networks for 32 pixels and their BatchNorm
twins.
"""

import copy

import torch
import torch.nn.functional as F
from harness import Case, arguments, run
from update import SGD

from workbench.memory_layout import CHANNELS_LAST, CONTIGUOUS, arrange
from workbench.networks import build_network
from workbench.optim import AGC, param_groups

RACE = "studies/fast_resnet.py:build"
CASES = [  # network, its arguments, batch, target
    ("nf_resnet_tiny", {}, 128, 0.65),
    ("nf_resnet_tiny", {}, 256, 0.65),
    ("resnet_tiny", {}, 128, 0.70),
    ("nf_resnet26_cifar", {}, 128, 0.70),
    ("resnet26_cifar", {}, 128, 0.70),
    ("nfnet_micro", {}, 128, 0.70),
    (RACE, {"width": 8}, 128, 0.70),
    (f"normfree:{RACE}", {"width": 8}, 128, 0.70),
]
ROUNDING = 1e-9  # of gradients in float64


class Step:
    """Training step of a copy of a network in one layout."""

    def __init__(self, model, layout, x, y):
        self.model = arrange(copy.deepcopy(model), layout).train()
        self.optimizer = torch.optim.SGD(param_groups(self.model), **SGD, fused=True)
        self.agc, self.x, self.y = AGC(self.optimizer), x, y

    def __call__(self):
        """Run one step."""
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()


def largest_difference(model, x, y) -> float:
    """Return the largest difference between gradients in the two layouts, relative to the largest gradient."""
    gradients = []
    for layout in (CONTIGUOUS, CHANNELS_LAST):
        net = arrange(copy.deepcopy(model).double(), layout).train()
        F.cross_entropy(net(x.double()), y).backward()
        gradients.append([p.grad for p in net.parameters()])
    size = max(g.abs().max() for g in gradients[0])
    return max(((a - b).abs().max() / size).item() for a, b in zip(*gradients, strict=True))


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__)

    def cases():
        for name, options, batch, target in CASES:
            label = f"{name.rsplit('/', 1)[-1]}, {batch}x32px"
            if name.startswith("normfree:"):
                label = f"normfree {label}"
            if args.only not in label:
                continue
            torch.manual_seed(0)
            model = build_network(name, 10, 3, **options)
            x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
            agreement = largest_difference(model, x[:8], y[:8])
            steps = [Step(model, layout, x, y) for layout in (CHANNELS_LAST, CONTIGUOUS, CONTIGUOUS)]
            yield Case(label, *steps, agreement, ROUNDING, target)

    run("channels_last", "contiguous", cases(), args)


if __name__ == "__main__":
    main()
