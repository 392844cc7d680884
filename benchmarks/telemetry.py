"""AGC with telemetry, compared with AGC alone.

The telemetry has quantiles and a ladder of thresholds for each parameter and step. As in a training, norms are kept at
every step and become a table every ten steps.
"""

from harness import Case, arguments, run
from parameters import copies, gradient_restorer, largest_difference, nfnet_f0, small, traffic

from workbench.optim import clip_grad_agc_
from workbench.training.observers import Telemetry

STEPS = 10


def watched(params):
    """Make a function that runs ten steps with telemetry."""

    def steps():
        telemetry = Telemetry(every=1, stats=lambda: clip_grad_agc_(params))
        for step in range(STEPS):
            telemetry.after_update(step, model=None, lr=0.0)
        telemetry.settle()

    return steps


def alone(params):
    """Make a function that runs ten steps without telemetry."""

    def steps():
        for _ in range(STEPS):
            clip_grad_agc_(params)

    return steps


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__, rounds=31)

    def cases():
        for name, params in (("nfnet_f0", nfnet_f0), ("1M parameters", small)):
            ours, peer, control = copies(params(args.device), 3)
            put_back = gradient_restorer(ours, peer, control)
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
