"""AGC alone, compared with timm's, on NFNet-F0's parameters.

Both use only torch operations. With vectors as gains, their results agree.
"""

import torch
from harness import Case, arguments, run
from parameters import copies, gradient_restorer, largest_difference, nfnet_f0, traffic
from peer import timm

from workbench.optim import clip_grad_agc_


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, rounds=31)
    if timm() is None:
        print("agc_step needs timm, which is not installed. agc_over_norm compares with torch instead.")
        return
    adaptive_clip_grad = timm().utils.adaptive_clip_grad

    def cases():
        ours, peer, control = copies(nfnet_f0(args.device), 3)
        theirs = [p for p in peer]
        put_back = gradient_restorer(ours, peer, control)
        clip_grad_agc_(ours)
        adaptive_clip_grad(theirs)
        agreement = largest_difference(ours, peer)
        yield Case(
            "nfnet_f0",
            ours=lambda: clip_grad_agc_(ours),
            peer=lambda: adaptive_clip_grad(theirs),
            control=lambda: adaptive_clip_grad(control),
            agreement=agreement,
            within=1e-6,
            target=0.33,
            prepare=put_back,
            moved=traffic(ours, 2.1),  # reads parameters and gradients once, and writes the clipped rows back
        )

    run("agc_step", "timm", cases(), args)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
