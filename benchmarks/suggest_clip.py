"""Compare the suggested clipping threshold with a full search on the validation split.

    python benchmarks/suggest_clip.py             # held-out problems; minutes on one thread
    python benchmarks/suggest_clip.py --tuning    # problems that the rule's constants were chosen on; half an hour

The search has nine thresholds and three seeds, of a hundred steps each. The suggestion may take at most 5 % of
the search's steps. Its accuracy must be within one standard deviation (over seeds) of the best.

Noise raises the best of nine means, and the deviation of three seeds is itself noisy. So the table also gives the
deviation pooled over all thresholds within ten points of the best. It also counts the thresholds that are within one
deviation of the best: if all nine are, no rule can fail. Every training is a row of docs/results/suggest_clip*.csv.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.models import create_model
from workbench.optim import AGC, param_groups, suggest_clip, warmup_cosine
from workbench.optim.telemetry import LADDER

STEPS, BATCH, WARMUP, SEEDS = 100, 64, 0.1, (0, 1, 2)
SEARCHED = (*LADDER, math.inf)  # the last: no clipping
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Problem:
    """Network, optimizer, data set and learning rate of a training."""

    net: str
    optimizer: str
    data: str
    lr: float

    def __str__(self) -> str:
        return f"{self.net}, {self.optimizer} {self.lr:g}, {self.data}"


HELD_OUT = [
    Problem("nf_resnet", "sgd", "mnist5k", 1.6),
    Problem("nf_resnet", "sgd", "mnist5k", 0.4),
    Problem("vit", "adamw", "mnist5k", 0.003),
    Problem("gru", "lion", "mnist5k", 0.001),
    Problem("vit", "adamw", "mnist5k", 0.02),  # this and the next at rates where the threshold may matter more
    Problem("gru", "lion", "mnist5k", 0.005),
]
TUNING = [
    *(Problem("nf_resnet", "sgd", "mnist5k", lr) for lr in (0.2, 0.8, 3.2)),
    *(Problem("cnn", "sgd", "mnist5k", lr) for lr in (0.05, 0.1, 0.3)),
    *(Problem("vit", "sgd", "mnist5k", lr) for lr in (0.05, 0.3)),
    Problem("mixer", "sgd", "mnist5k", 0.5),
    Problem("mixer", "sgd", "cifar10", 0.1),
    *(Problem("mixer", "adamw", "mnist5k", lr) for lr in (0.003, 0.02, 0.05)),
    *(Problem("cnn", "adamw", "mnist5k", lr) for lr in (0.002, 0.005)),
    *(Problem("vit", "adamw", "cifar10", lr) for lr in (0.003, 0.02)),
    Problem("nf_resnet", "adamw", "mnist5k", 0.02),
    *(Problem("vit", "lion", "mnist5k", lr) for lr in (0.001, 0.005)),
    *(Problem("mixer", "lion", "mnist5k", lr) for lr in (0.0007, 0.003)),
    *(Problem("cnn", "lion", "mnist5k", lr) for lr in (0.0005, 0.003)),
    Problem("cnn", "lion", "cifar10", 0.001),
    Problem("nf_resnet", "lion", "mnist5k", 0.003),
]


# ---- networks and an optimizer


class Lion(torch.optim.Optimizer):
    """Lion: steps by the sign of a moving average. Source: Chen et al. 2023, algorithm 2."""

    def __init__(self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters. `closure` is ignored."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * m.lerp(p.grad, 1 - beta1).sign())
                m.lerp_(p.grad, 1 - beta2)


class Tokens(nn.Module):
    """Network on 16 patches of an image, with three blocks.

    Args:
        mixing: Class of the blocks.
        channels: Channels of the images.
        side: Height and width of the images, pixels.
        width: Channels of the tokens.
    """

    def __init__(self, mixing: type, channels: int, side: int, width: int = 48):
        super().__init__()
        self.patch = nn.Conv2d(channels, width, side // 4, side // 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(mixing(width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, side, side) to logits (N, 10)."""
        tokens = self.patch(x).flatten(2).transpose(1, 2)  # (N, 16, width)
        return self.head(self.norm(self.blocks(tokens + self.position)).mean(1))


def perceptron(width: int) -> nn.Sequential:
    """Make a perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Attention(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, width) to tokens of the same shape."""
        h = self.norm1(x)
        x = x + self.attend(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Mixing(nn.Module):
    """MLP-Mixer block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.over_tokens, self.over_channels = nn.LayerNorm(width), perceptron(16), perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, 16, width) to tokens of the same shape."""
        x = x + self.over_tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm(x))


class Rows(nn.Module):
    """Recurrent network that reads an image row by row."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.gru, self.head = nn.GRU(channels * side, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, side, side) to logits (N, 10)."""
        return self.head(self.gru(x.movedim(1, 2).flatten(2))[0][:, -1])


def plain_cnn(channels: int, side: int) -> nn.Sequential:
    """Make a convolutional network without normalization and residuals."""
    widths, strides = (channels, 16, 32, 32, 64), (1, 2, 1, 2)
    convs = [(nn.Conv2d(a, b, 3, s, 1), nn.ReLU()) for a, b, s in zip(widths[:-1], widths[1:], strides, strict=True)]
    return nn.Sequential(*sum(convs, ()), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


NETS = {
    "nf_resnet": lambda channels, side: create_model("nf_resnet_tiny", 10, in_channels=channels, skip_gain=1.0),
    "vit": lambda channels, side: Tokens(Attention, channels, side),
    "mixer": lambda channels, side: Tokens(Mixing, channels, side),
    "cnn": plain_cnn,
    "gru": Rows,
}
OPTIMIZERS = {  # with the weight decay that is usual for each
    "sgd": (2e-5, lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)),
    "adamw": (0.05, lambda groups, lr: torch.optim.AdamW(groups, lr=lr)),
    "lion": (0.5, lambda groups, lr: Lion(groups, lr=lr)),
}


# ---- a training


@lru_cache
def images(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most 10,000 to train on and 1,000 to validate."""
    data = load_dataset(name)
    train, val = data.train.take(slice(10_000)), data.val.take(slice(1_000))
    x, val_x = (normalize(split.images, data.mean, data.std) for split in (train, val))
    return x, train.labels, val_x, val.labels


class Batches:
    """Endless shuffled batches, which start again with each iteration."""

    def __init__(self, x: Tensor, y: Tensor, seed: int):
        self.x, self.y, self.seed = x, y, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.y), generator=generator)
            for index in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
                yield self.x[index], self.y[index]


def start(problem: Problem, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Batches]:
    """Make the model, optimizer and batches of a training."""
    x, y, _, _ = images(problem.data)
    torch.manual_seed(seed)
    model = NETS[problem.net](x.shape[1], x.shape[-1])
    decay, build = OPTIMIZERS[problem.optimizer]
    return model, build(param_groups(model, decay), problem.lr), Batches(x, y, seed)


def train(problem: Problem, clip: float, seed: int, steps: int = STEPS) -> dict:
    """Train once and return a row. A diverged training gets the accuracy of guessing."""
    model, optimizer, batches = start(problem, seed)
    for group in optimizer.param_groups:
        group["clip"] = None if group["clip"] is None or clip == math.inf else clip
    AGC(optimizer)
    schedule = warmup_cosine(optimizer, WARMUP * steps, steps)
    row = {"problem": str(problem), "clip": clip, "seed": seed, "steps": steps, "diverged_at": None}
    for step, (x, y) in zip(range(1, steps + 1), batches, strict=False):
        loss = F.cross_entropy(model(x), y)
        if not loss.item() < 20 * math.log(10):
            return row | {"val_acc": 0.1, "diverged_at": step}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _, _, x, y = images(problem.data)
    with torch.no_grad():
        return row | {"val_acc": (model.eval()(x).argmax(1) == y).double().mean().item()}


def measure(problem: Problem) -> tuple[list[dict], dict]:
    """Search and suggest a threshold. Return all trainings as rows, and a line of the table."""
    model, optimizer, batches = start(problem, SEEDS[0])
    advice = suggest_clip(model, batches, optimizer, progress=False)
    rows = [{"problem": str(problem), "role": "suggestion", "clip": advice.clip, "steps": advice.steps}]
    rows += [{"role": "search", **train(problem, clip, seed)} for clip in SEARCHED for seed in SEEDS]
    rows += [{"role": "suggested", **train(problem, advice.clip, seed)} for seed in SEEDS]
    line = compare(pd.DataFrame(rows)) | {"search": f"{advice.low:g} to {advice.high:g}", "sure": advice.confidence}
    return rows, {"problem": str(problem), **line}


def compare(rows: pd.DataFrame) -> dict:
    """Compare the suggested threshold with the best of the search.

    Args:
        rows: All trainings of a problem.

    Returns:
        Accuracies, deviations over seeds, and the cost of the suggestion as a share of the search's steps.
    """
    search = rows[rows.role == "search"]
    by_clip = search.groupby("clip").val_acc.agg(["mean", "std"])
    best, suggested = by_clip["mean"].idxmax(), rows[rows.role == "suggested"]
    reached, spread = suggested.val_acc.mean(), by_clip["std"][best]
    pooled = (by_clip["std"][by_clip["mean"] > by_clip["mean"][best] - 0.1] ** 2).mean() ** 0.5
    behind = by_clip["mean"][best] - reached
    return {
        "best clip": best,
        "best acc": by_clip["mean"][best],
        "seed sd": spread,
        "pooled sd": pooled,
        "as good": int((by_clip["mean"] >= by_clip["mean"][best] - spread).sum()),
        "clip": suggested["clip"].iloc[0],
        "acc": reached,
        "within": "yes" if behind <= spread else "pooled" if behind <= pooled else "no",
        "cost": rows[rows.role == "suggestion"].steps.sum() / search.steps.sum(),
    }


def main() -> None:
    """Run the comparison, write the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tuning", action="store_true", help="run the problems that the rule was tuned on")
    parser.add_argument("--only", default="", help="run only problems whose name contains this text; write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, lines = [], []
    for problem in TUNING if args.tuning else HELD_OUT:
        if args.only in str(problem):
            more, line = measure(problem)
            rows, lines = rows + more, [*lines, line]
            print("  ".join(v if isinstance(v, str) else f"{k} {v:.3g}" for k, v in line.items()), flush=True)
            if not args.only:
                name = "suggest_clip_tuning.csv" if args.tuning else "suggest_clip.csv"
                pd.DataFrame(rows).to_csv(RESULTS / name, index=False, float_format="%.6g")
    print(pd.DataFrame(lines).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
