"""Update after the backward pass, compared with timm's.

It is AGC, SGD with Nesterov momentum, and the average of the weights.
"""

import copy

import torch
from harness import Case, arguments, run
from parameters import copies, gradient_restorer, largest_difference, nfnet_f0, small, traffic
from peer import timm
from torch import nn

from workbench.optim import AGC, EMA

SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 2e-5}


def holder(params) -> nn.Module:
    """Make a module with these parameters, which the average of the weights can copy."""
    model = nn.Module()
    for i, p in enumerate(params):
        model.register_parameter(f"p{i}", nn.Parameter(p.detach()))
        model.get_parameter(f"p{i}").grad = p.grad
    return model


class Ours:
    """Our update: AGC as a hook of a fused optimizer, and one operation for the average."""

    def __init__(self, params):
        self.model = holder(params)
        self.params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.params, **SGD, fused=True)
        self.agc, self.ema = AGC(self.optimizer), EMA(self.model, 0.9999, warmup=False)

    def step(self):
        """Update parameters and average."""
        self.optimizer.step()
        self.ema.update()


class Timms:
    """timm's update, as in its training script."""

    def __init__(self, params):
        self.model = holder(params)
        self.params = list(self.model.parameters())
        self.clip = timm().utils.adaptive_clip_grad
        self.optimizer = torch.optim.SGD(self.params, **SGD)
        self.ema = timm().utils.ModelEmaV3(copy.deepcopy(self.model), decay=0.9999)

    def step(self):
        """Update parameters and average."""
        self.clip(self.params)
        self.optimizer.step()
        self.ema.update(self.model)


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, rounds=31)
    if timm() is None:
        print("update needs timm, which is not installed. agc_over_norm compares with torch instead.")
        return
    gpu = args.device == "cuda"

    def cases():
        for name, params, target, calls in (("nfnet_f0", nfnet_f0, 0.42, 1), ("1M parameters", small, 0.45, 20)):
            if args.only not in name:
                continue
            a, b, c = copies(params(args.device), 3)
            ours, theirs, control = Ours(a), Timms(b), Timms(c)
            put_back = gradient_restorer(ours.params, theirs.params, control.params)
            for each in (ours, theirs):
                each.step()
            yield Case(
                name,
                ours=ours.step,
                peer=theirs.step,
                control=control.step,
                agreement=largest_difference(ours.params, theirs.params),
                within=1e-5,
                target=0.30 if gpu else target,
                moved=traffic(ours.params, 2 + 3 + 1),  # reads p, g and momentum; writes p, momentum and average
                calls=calls,
                prepare=put_back,
            )

    run("update", "timm", cases(), args)


if __name__ == "__main__":
    main()
