"""Cost of signal propagation, compared with a plain forward pass."""

import torch
from harness import Case, arguments, run

from workbench.models import create_model
from workbench.probes import signal_propagation


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__)
    torch.set_grad_enabled(False)

    def cases():
        for name, batch, size in (("nf_resnet26_cifar", 64, 32), ("nf_resnet50", 16, 96), ("nfnet_f0", 16, 96)):
            if args.only not in name:
                continue
            model = create_model(name, 10, skip_gain=1.0).to(args.device).eval()
            x = torch.randn(batch, 3, size, size, device=args.device)
            yield Case(
                f"{name}, {batch}x{size}px",
                ours=lambda m=model, x=x: signal_propagation(m, x),
                peer=lambda m=model, x=x: m(x),
                control=lambda m=model, x=x: m(x),
                agreement=0.0,
                within=0.0,
                target=1.15,  # 15 % more than a forward pass
                calls=3 if size == 32 else 1,
            )

    run("signal_probe", "a plain forward pass", cases(), args)


if __name__ == "__main__":
    main()
