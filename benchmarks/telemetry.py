"""AGC with all of its telemetry, quantiles and a ladder of thresholds for each parameter and step, over AGC alone.

As a training does it: norms are kept each step, and made a table of every ten.
"""

from harness import Case, arguments, run
from parameters import as_before, copies, largest_difference, nfnet_f0, small, traffic

from workbench.optim import clip_grad_agc_
from workbench.training.observers import Telemetry

STEPS = 10


def watched(params):
    def steps():
        telemetry = Telemetry(every=1, stats=lambda: clip_grad_agc_(params))
        for step in range(STEPS):
            telemetry.after_update(step, model=None, lr=0.0)
        telemetry.settle()

    return steps


def alone(params):
    def steps():
        for _ in range(STEPS):
            clip_grad_agc_(params)

    return steps


def main() -> None:
    args = arguments(__doc__, rounds=31)

    def cases():
        for name, params in (("nfnet_f0", nfnet_f0), ("1M parameters", small)):
            ours, peer, control = copies(params(args.device), 3)
            put_back = as_before(ours, peer, control)
            watched(ours)()
            alone(peer)()
            yield Case(
                name,
                ours=watched(ours),
                peer=alone(peer),
                control=alone(control),
                agreement=largest_difference(ours, peer),
                within=0.0,
                target=1.25,
                moved=STEPS * traffic(ours, 2.1),
                prepare=put_back,
            )

    run("telemetry", "AGC alone", cases(), args)


if __name__ == "__main__":
    main()
