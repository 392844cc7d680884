"""AGC compared with clipping by the global norm, on NFNet-F0's parameters.

Clipping by the global norm is the usual alternative. Neither method waits for a GPU.
"""

import torch
from harness import Case, arguments, run
from parameters import copies, gradient_restorer, nfnet_f0, traffic

from workbench.optim import clip_grad_agc_


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, rounds=31)
    ours, peer, control = copies(nfnet_f0(args.device), 3)

    def norm(params):
        return lambda: torch.nn.utils.clip_grad_norm_(params, 1e9, foreach=True)

    case = Case(
        "nfnet_f0",
        ours=lambda: clip_grad_agc_(ours),
        peer=norm(peer),
        control=norm(control),
        agreement=0.0,  # two different rules need not agree
        within=0.0,
        target=1.5,
        moved=traffic(ours, 2.1),
        prepare=gradient_restorer(ours, peer, control),
    )
    run("agc_over_norm", "clip_grad_norm_(foreach=True)", [case], args)


if __name__ == "__main__":
    main()
