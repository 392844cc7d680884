"""One training, one evaluation, one check, or the end of a training again."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import Set, app, pairs
from workbench.errors import WorkbenchError


@app.command()
def train(
    recipe: Annotated[
        Optional[str],
        typer.Argument(
            metavar="[RECIPE]",
            help="A preset (cifar, paper_nfnet:f0, paper_nf_resnet:50, paper_nf_regnet:b0, finetune:nfnet_f0), "
            "or a YAML file. None: the defaults.",
        ),
    ] = None,
    parameters: Set = None,
    save: Annotated[
        Optional[str], typer.Option(help="Where the final weights go, e.g. mine.safetensors; runs even if known.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe as YAML, every number, and stop.")] = False,
) -> None:
    """Run one training: a recipe, changed with -p NAME=VALUE (fields of TrainConfig), logged like everything else.

    On several GPUs: torchrun --nproc-per-node 8 -m workbench.cli train ...
    """
    from rich.console import Console

    from workbench.lab.jobs.run_all import check, help_training
    from workbench.lab.studies.recipes import parse_config, recipe_text
    from workbench.training.distributed import World
    from workbench.training.inputs import source

    config = parse_config(pairs(parameters), recipe)
    if show:
        print(recipe_text(config), end="")
        return
    check(config)
    world = World.from_environment()
    config = config.replace(micro_batch=world.micro_batch(config.batch_size, config.micro_batch))  # what it is then
    if not world.first:
        return help_training(config)
    if save is not None:
        from workbench.files import target_path

        target_path(save, (".safetensors",))
    console = Console()
    console.print(f"{config.name} on {source(config)}", highlight=False)

    from workbench.lab.jobs.run_all import run_training
    from workbench.lab.store.client import Store
    from workbench.lab.studies.session import Session

    session = Session(Store(), study="", mode="full")
    run_id, result, reused = run_training(config, session, role="screen", arm=config.model, save=save)
    how = "reused" if reused else result.outcome
    console.print(f"{how}{f' ({result.cause})' if result.cause else ''}: run {run_id}", highlight=False)
    for name, value in result.metrics.items():
        console.print(f"  {name:18} {value:.6g}", highlight=False)
    if save is not None and result.outcome != "complete":
        print(f"workbench: {save} was not written, for the training {result.outcome}.", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="The network's name, see `workbench models`.")],
    data: Annotated[
        str, typer.Option(help="A folder with one folder of images per class, a parquet file, or a folder of those.")
    ],
    weights: Annotated[
        Optional[str],
        typer.Option(help="A file (.safetensors, .npz as released, .pth). None: the released one, fetched once."),
    ] = None,
    image_size: Annotated[Optional[int], typer.Option(help="Pixels a side; None: the model's test size.")] = None,
    style: Annotated[
        Optional[str],
        typer.Option(help="How images are cut: squash, crop or whole; None: as for the model."),
    ] = None,
    classes: Annotated[
        Optional[str], typer.Option(help="File with the names of the network's outputs, where data has only some.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(help="Threads that decode images.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Top-1 and top-5 of a network with weights over images, with intervals, logged like every run."""
    from rich.console import Console

    names = _lines(classes) if classes else None
    from workbench.lab.jobs.evaluate import evaluate as run

    scores = run(
        model,
        weights,
        data,
        image_size=image_size,
        style=style,
        classes=names,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    console = Console()
    published = scores.published or (None, None)
    for name, share, theirs in (("top-1", scores.top1, published[0]), ("top-5", scores.top5, published[1])):
        beside = f"   published, ImageNet: {theirs} %" if theirs else ""
        interval = f"{share.mean:.2%} [{share.low:.2%}, {share.high:.2%}] of {share.n:,}"
        console.print(f"  {name:18} {interval}{beside}", highlight=False)
    console.print(f"  {'cross-entropy':18} {scores.loss:.4g}", highlight=False)
    if scores.not_finite:
        console.print(f"  for {scores.not_finite:,} images the network's outputs are no numbers: they count as wrong")
    console.print(f"  {'images per second':18} {scores.images_per_second:.0f}", highlight=False)
    console.print(f"run {scores.run_id}", highlight=False)


@app.command()
def check(
    model: Annotated[
        str,
        typer.Argument(help="A name (see `workbench models`), or your own: package.module:function, file.py:function."),
    ],
    data: Annotated[
        Optional[str], typer.Option(help="A data set or folder of images to send through. None: N(0, 1) noise.")
    ] = None,
    image_size: Annotated[Optional[int], typer.Option(help="Pixels a side; None: the model's, at most 128.")] = None,
    in_channels: Annotated[Optional[int], typer.Option(help="Channels; None: the data's, else the model's.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images.")] = 16,
    precision: Annotated[str, typer.Option(help="float32, or by autocast float16, bfloat16.")] = "float32",
    blocks: Annotated[
        Optional[str], typer.Option(help="Modules whose outputs are the trunk, comma-separated. None: found.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    parameters: Set = None,
) -> None:
    """Does signal keep its scale through this network, forward and backward? Names each fault, its cause and cure.

    Exit code 0: sound; 1: faults were found. -p sets arguments of the network, e.g. -p width=0.5.
    """
    from rich.console import Console

    from workbench.cli.check_table import show_blocks
    from workbench.lab.jobs.check import check_model, parse_arguments

    console = Console(width=None if sys.stdout.isatty() else 160)
    run_id, judgement = check_model(
        model,
        arguments=parse_arguments(pairs(parameters)),
        data=data,
        image_size=image_size,
        in_channels=in_channels,
        batch_size=batch_size,
        precision=precision,
        blocks=[name.strip() for name in blocks.split(",") if name.strip()] if blocks else None,
        seed=seed,
        device=device,
    )
    show_blocks(judgement.table, console)
    console.print(str(judgement), highlight=False, markup=False, soft_wrap=True)
    console.print(f"run {run_id}", highlight=False)
    if not judgement.ok:
        raise typer.Exit(1)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="The training: its run id in the store, or the beginning of it.")],
    back: Annotated[int, typer.Option(help="Steps to go back from the divergence, or from the end.")] = 20,
    clip: Annotated[Optional[float], typer.Option(help="A fork with this AGC threshold.")] = None,
    lr: Annotated[
        Optional[float],
        typer.Option(
            help="A fork with this peak learning rate (at the training's batch size); the schedule's shape is kept."
        ),
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="auto, cpu, cuda, cuda:1, mps. None: where it was trained.")
    ] = None,
) -> None:
    """Go through the last steps of a training again and record each: losses, and which layer's gradients went first.

    With --clip or --lr a fork is trained beside it from the same weights on. On CPU the replay is bitwise the training.
    """
    from rich.console import Console

    from workbench.cli.replay_table import show_steps
    from workbench.lab.jobs.replay import replay as run_again
    from workbench.lab.jobs.replay import sentences

    console = Console(width=None if sys.stdout.isatty() else 160)
    say = lambda line: print(line, flush=True)
    replayed = run_again(run, back=back, clip=clip, lr=lr, device=device, progress=sys.stderr.isatty(), say=say)
    show_steps(replayed, console)
    for line in (replayed.verdict, *sentences(replayed), f"run {replayed.run_id}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(file: str) -> list[str]:
    from pathlib import Path

    try:
        return [line.strip() for line in Path(file).expanduser().read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"cannot read {file} ({error}).") from error
