"""AGC over clipping by the global norm, which people use instead, on NFNet-F0's parameters; neither waits for a GPU."""

import torch
from harness import Case, arguments, run
from parameters import as_before, copies, nfnet_f0, traffic

from workbench.optim import clip_grad_agc_


def main() -> None:
    args = arguments(__doc__, rounds=31)
    ours, peer, control = copies(nfnet_f0(args.device), 3)

    def norm(params):
        return lambda: torch.nn.utils.clip_grad_norm_(params, 1e9, foreach=True)

    case = Case(
        "nfnet_f0",
        ours=lambda: clip_grad_agc_(ours),
        peer=norm(peer),
        control=norm(control),
        agreement=0.0,  # two rules: nothing to agree on
        within=0.0,
        target=1.5,
        moved=traffic(ours, 2.1),
        prepare=as_before(ours, peer, control),
    )
    run("agc_over_norm", "clip_grad_norm_(foreach=True)", [case], args)


if __name__ == "__main__":
    main()
