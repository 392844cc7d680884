"""Training step, compared with timm's networks with the same weights.

On a CPU, a step is forward and backward. On a GPU, it also has AGC, SGD and the average of the weights, and runs in
bfloat16 autocast and channels_last, which is faster for both. Both are eager, or compiled with --compile.
"""

import argparse
import copy
import sys

import torch
import torch.nn.functional as F
from harness import Case, arguments, run
from networks import PAIRS, ROUNDING, flops, largest_gradient_difference, pair
from peer import timm
from update import SGD

from workbench.optim import AGC, EMA, param_groups


class Ours:
    """Our training step, as in workbench.training."""

    def __init__(self, model, x, y, compiled: bool):
        self.model, self.x, self.y = model, x, y
        self.forward = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.SGD(param_groups(model), **SGD, fused=True)
        self.agc, self.ema = AGC(self.optimizer), EMA(model, 0.9999)

    def backward(self):
        """Run forward and backward."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.x.is_cuda):
            out = self.forward(self.x)
        F.cross_entropy(out.float(), self.y).backward()

    def step(self):
        """Run forward, backward and the update."""
        self.backward()
        self.optimizer.step()
        self.ema.update()


class Timms(Ours):
    """timm's training step, with its clipping and average, as in its training script."""

    def __init__(self, model, x, y, compiled: bool):
        self.model, self.x, self.y = model, x, y
        self.forward = torch.compile(model) if compiled else model
        self.params = list(model.parameters())
        self.optimizer = torch.optim.SGD(self.params, **SGD)
        self.ema = timm().utils.ModelEmaV3(model, decay=0.9999)

    def step(self):
        """Run forward, backward and the update."""
        self.backward()
        timm().utils.adaptive_clip_grad(self.params[:-2])
        self.optimizer.step()
        self.ema.update(self.model)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--compile", action="store_true")
    flags, rest = options.parse_known_args()
    sys.argv[1:] = rest
    args = arguments(__doc__, threads=2)
    if timm() is None:
        print("training_step needs timm, which is not installed.")
        return
    gpu = args.device == "cuda"

    def cases():
        for name in PAIRS:
            batch, size = (256, 192) if gpu else (16, 96)
            label = f"{name}, {batch}x{size}px{', compiled' if flags.compile else ''}"
            if args.only not in label:
                continue
            ours, theirs = pair(name)
            agreement = largest_gradient_difference(ours, theirs)
            layout = torch.channels_last if gpu else torch.contiguous_format
            ours, theirs = (m.float().train().to(args.device, memory_format=layout) for m in (ours, theirs))
            x = torch.randn(batch, 3, size, size, device=args.device).contiguous(memory_format=layout)
            y = torch.randint(0, 1000, (batch,), device=args.device)
            work = 3 * flops(ours, x)
            steps = [Ours(ours, x, y, flags.compile)]
            steps += [Timms(m, x, y, flags.compile) for m in (theirs, copy.deepcopy(theirs))]
            a, b, c = (s.step if gpu else s.backward for s in steps)
            target = 1.0 if not gpu else 0.95 if flags.compile else 0.85
            dtype = torch.bfloat16 if gpu else torch.float32
            yield Case(label, a, b, c, agreement, ROUNDING, target, flops=work, dtype=dtype)

    run("training_step", "timm", cases(), args)


if __name__ == "__main__":
    main()
