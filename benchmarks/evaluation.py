"""Forward pass in evaluation mode, compared with timm's networks with the same weights.

Our weights are standardised once, or folded into plain convolutions.
"""

import copy

import torch
from harness import Case, arguments, run
from networks import PAIRS, ROUNDING, flops, largest_difference, pair
from peer import timm

from workbench.models.once import standardized_once
from workbench.weights.export import fold

TEST_SIZES = {"nf_resnet50": 224, "nfnet_f0": 256}


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, threads=2, rounds=11)
    if timm() is None:
        print("evaluation needs timm, which is not installed.")
        return
    torch.set_grad_enabled(False)

    def cases():
        for name in PAIRS:
            ours, theirs = pair(name)
            agreement = largest_difference(ours, theirs)
            ours, theirs = (m.float().eval().to(args.device) for m in (ours, theirs))
            folded, control = fold(ours), copy.deepcopy(theirs)
            for batch, size, target in ((1, 96, 0.65), (1, TEST_SIZES[name], 0.65), (16, 96, 0.90)):
                x = torch.randn(batch, 3, size, size, device=args.device)
                common = {
                    "peer": lambda x=x, m=theirs: m(x),
                    "control": lambda x=x, m=control: m(x),
                    "agreement": agreement,
                    "within": ROUNDING,
                    "target": target,
                    "flops": flops(ours, x),
                    "calls": 3 if batch == 1 else 1,
                }
                label = f"{name}, {batch}x{size}px"
                if args.only in label:
                    with standardized_once(ours):
                        yield Case(f"{label}, once", ours=lambda x=x, m=ours: m(x), **common)
                    yield Case(f"{label}, folded", ours=lambda x=x, m=folded: m(x), **common)

    run("evaluation", "timm", cases(), args)


if __name__ == "__main__":
    main()
