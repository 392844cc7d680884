"""Share of a training step that makes its batch, on CIFAR-sized images.

Images are on the device, and each batch is gathered, flipped, shifted, normalised, mixed and cut out there. The peer is
the whole training step, so ours / peer is the share that waits for data.
"""

import torch
import torch.nn.functional as F
from harness import Case, arguments, run

from workbench.data import Dataset, Split
from workbench.models import create_model
from workbench.optim import AGC, param_groups
from workbench.training import TrainConfig
from workbench.training.distributed import World
from workbench.training.inputs import Inputs


def dataset(n: int = 50_000) -> Dataset:
    """Make noise of CIFAR-10's shape. Its content does not change the time."""
    split = Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))
    small = split.take(slice(0, 512))
    half = torch.full((3,), 0.5)
    return Dataset("noise", split, small, small, tuple("abcdefghij"), half, half / 2, flip=True, digest="")


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, threads=2)
    device = torch.device(args.device)
    batch = 1024 if device.type == "cuda" else 128
    data = dataset()

    def cases():
        for label, recipe in (("flip and shift", {}), ("with MixUp, CutMix and cutout", {"mix": True, "cutout": 8})):
            config = TrainConfig(data="cifar10", batch_size=batch, steps=10**6, progress=False, **recipe)
            inputs = Inputs(config, data, World(), device)
            steps = inputs.steps(10**6)
            model = create_model("nf_resnet26_cifar", 10).to(device)
            optimizer = torch.optim.SGD(param_groups(model), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
            AGC(optimizer)

            def make(steps=steps):
                return [part.made() for part in next(steps)]

            def step(make=make, model=model, optimizer=optimizer):
                optimizer.zero_grad(set_to_none=True)
                for x, y in make():
                    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                        logits = model(x)
                    F.cross_entropy(logits.float(), y).backward()
                optimizer.step()

            yield Case(f"{label}, {batch}x32px", make, step, step, 0.0, 0.0, target=0.02)

    run("pipeline", "the whole training step", cases(), args)


if __name__ == "__main__":
    main()
