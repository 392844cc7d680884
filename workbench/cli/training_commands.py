"""The commands that train, evaluate, check and replay one network."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import Set, app, pairs
from workbench.errors import WorkbenchError
from workbench.outcomes import COLLAPSED, COMPLETE


@app.command()
def train(
    recipe: Annotated[
        Optional[str],
        typer.Argument(
            metavar="RECIPE",
            help="A preset (cifar, paper_nfnet:f0, paper_nf_resnet:50, paper_nf_regnet:b0, finetune:nfnet_f0), "
            "or a YAML file. Default: the defaults of TrainConfig.",
        ),
    ] = None,
    parameters: Set = None,
    save: Annotated[
        Optional[str],
        typer.Option(
            metavar="FILE",
            help="Write the final weights to this .safetensors file. A known result is then not reused.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the whole recipe as YAML, with every number, and stop.")
    ] = False,
) -> None:
    """Run one training and record it in the store.

    A finished training with the same settings, code and data is reused. Change fields of the recipe (of TrainConfig)
    with -p NAME=VALUE.

    On several GPUs: torchrun --nproc-per-node 8 -m workbench.cli train ...
    """
    from workbench.lab.studies.recipes import clipping_text, default_clip, given_fields, parse_config, recipe_text

    texts = pairs(parameters)
    config = parse_config(texts, recipe)
    clip_is_default = "clip" not in given_fields(texts, recipe)
    if show:
        config = default_clip(config, _sketch(config)) if clip_is_default else config
        print(recipe_text(config), end="")
        return
    if save is not None:
        from workbench.files import target_path

        target_path(save, (".safetensors",))

    from workbench.cli.terminal import Terminal
    from workbench.lab.jobs.run_all import check, help_training
    from workbench.training.distributed import World
    from workbench.training.first_batch import check_networks
    from workbench.training.inputs import source

    model = check(config)
    check_networks([config])
    config = default_clip(config, model) if clip_is_default else config
    world = World.from_environment()
    # Processes that share a batch train it as micro-batches, which the run must record.
    config = config.replace(micro_batch=world.micro_batch(config.batch_size, config.micro_batch))
    if not world.first:
        return help_training(config)
    console = Terminal(160)
    console.print(f"{config.name}: {clipping_text(config)}; {source(config)}", highlight=False, soft_wrap=True)

    from workbench.lab.jobs.run_all import run_training
    from workbench.lab.store.client import Store
    from workbench.lab.studies.session import Session

    session = Session(Store(), study="", mode="full")
    run_id, result, reused = run_training(config, session, role="screen", arm=config.model, save=save)
    how = "reused" if reused else result.outcome
    console.print(f"{how}{f' ({result.cause})' if result.cause else ''}: run {run_id}", highlight=False)
    for name, value in result.metrics.items():
        console.print(f"  {name:18} {value:.6g}", highlight=False)
    if save is not None and result.outcome == COLLAPSED:
        print(f"workbench: Wrote {save}, but the training collapsed: {result.cause}.", file=sys.stderr)
    elif save is not None and result.outcome != COMPLETE:
        print(f"workbench: Did not write {save}, because the training {result.outcome}.", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="The network's name. `workbench models` lists them.")],
    data: Annotated[
        str,
        typer.Option(
            help="A data set (mnist5k, cifar10), a folder with one folder of images per class, a parquet file, or a "
            "folder of parquet files."
        ),
    ],
    weights: Annotated[
        Optional[str],
        typer.Option(
            help="A file: .safetensors, .pth, or .npz as released. Default: the released weights, downloaded once."
        ),
    ] = None,
    split: Annotated[
        Optional[str],
        typer.Option(
            metavar="all|train|val|test",
            help="The images to score. Default: the test split of the training or of the data, else all.",
        ),
    ] = None,
    image_size: Annotated[
        Optional[int],
        typer.Option(help="Image side in pixels. Default: as the weights file says, else the model's test size."),
    ] = None,
    style: Annotated[
        Optional[str],
        typer.Option(
            metavar="squash|crop|whole|fit",
            help="How to cut images. Default: as the weights file says, else the model's.",
        ),
    ] = None,
    classes: Annotated[
        Optional[str],
        typer.Option(
            metavar="FILE",
            help="A file with one name per output of the network. Default: as the weights file says. Needed if it does "
            "not, and the data has only some classes.",
        ),
    ] = None,
    unreadable: Annotated[str, typer.Option(help="refuse, or skip images that cannot be read.")] = "refuse",
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    workers: Annotated[int, typer.Option(help="Threads that decode images.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Measure a network's top-1 and top-5 accuracy on images.

    Prints 95 % confidence intervals, and records the evaluation in the store. Classes are matched by name if the file
    of weights names them.
    """
    names = _lines(classes) if classes else None
    from workbench.networks import check_name

    check_name(model)

    from workbench.cli.terminal import Terminal
    from workbench.lab.jobs.evaluate import evaluate as run

    scores = run(
        model,
        weights,
        data,
        split=split,
        image_size=image_size,
        style=style,
        classes=names,
        unreadable=unreadable,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    console = Terminal(160)
    published = scores.published or (None, None)
    for name, share, theirs in (("top-1", scores.top1, published[0]), ("top-5", scores.top5, published[1])):
        if share is None:
            continue
        reference = f"   published, ImageNet: {theirs} %" if theirs else ""
        interval = f"{share.mean:.2%} [{share.low:.2%}, {share.high:.2%}] of {share.n:,}"
        console.print(f"  {name:18} {interval}{reference}", highlight=False)
    console.print(f"  {'cross-entropy':18} {scores.loss:.4g}", highlight=False)
    if scores.not_finite:
        console.print(f"  {scores.not_finite:,} images have outputs that are not finite. They count as wrong.")
    console.print(f"  {'images per second':18} {scores.images_per_second:.0f}", highlight=False)
    console.print(f"  {'split':18} {scores.split}", highlight=False)
    console.print(f"run {scores.run_id}", highlight=False)
    if scores.trained_on:
        print(
            "workbench: The weights were trained on some of these images, so the accuracy is too high. "
            "Use --split test.",
            file=sys.stderr,
        )


@app.command()
def check(
    model: Annotated[
        str,
        typer.Argument(
            help="A name from `workbench models`, or your network: package.module:function or file.py:function."
        ),
    ],
    data: Annotated[
        Optional[str], typer.Option(help="A data set, or a folder of images, as input. Default: N(0, 1) noise.")
    ] = None,
    image_size: Annotated[
        Optional[int], typer.Option(help="Image side in pixels. Default: the model's, at most 128.")
    ] = None,
    in_channels: Annotated[
        Optional[int], typer.Option(help="Input channels. Default: the data's, else the model's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in the batch.")] = 16,
    precision: Annotated[str, typer.Option(help="float32, or float16 or bfloat16 by autocast.")] = "float32",
    blocks: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAMES", help="Modules whose outputs form the trunk, separated by commas. Default: detected."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    parameters: Set = None,
) -> None:
    """Check that signals keep their scale through a network.

    Follows activations and gradients through the blocks or layers, and names each fault with its cause and cure. Set
    arguments of the network with -p, such as -p width=0.5. The exit code is 0 if the network is sound, and 1 if it has
    faults.
    """
    from workbench.networks import check_name

    check_name(model)

    from workbench.cli.check_table import show_blocks
    from workbench.cli.terminal import Terminal
    from workbench.lab.jobs.check import check_model, parse_arguments

    console = Terminal(160)
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
    run: Annotated[str, typer.Argument(help="The training: its run id in the store, or the first characters of it.")],
    back: Annotated[int, typer.Option(help="Steps to repeat before the divergence, or before the end.")] = 20,
    clip: Annotated[Optional[float], typer.Option(help="Also train a fork with this AGC threshold.")] = None,
    lr: Annotated[
        Optional[float],
        typer.Option(
            help="Also train a fork with this peak learning rate, at the training's batch size. "
            "The schedule keeps its shape."
        ),
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="auto, cpu, cuda, cuda:1 or mps. Default: where it was trained.")
    ] = None,
) -> None:
    """Repeat the last steps of a training and record each one.

    Shows the losses, and which layer's gradients left their usual range first. With --clip or --lr, a second training
    (the fork) starts from the same weights. On CPU the replay equals the training bit for bit.
    """
    from workbench.cli.replay_table import show_steps
    from workbench.cli.terminal import Terminal
    from workbench.lab.jobs.replay import replay as run_again
    from workbench.lab.jobs.replay import sentences

    console = Terminal(160)
    say = lambda line: print(line, flush=True)
    replayed = run_again(run, back=back, clip=clip, lr=lr, device=device, say=say)
    show_steps(replayed, console)
    for line in (replayed.verdict, *sentences(replayed), f"run {replayed.run_id}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sketch(config):
    """Build the network of a configuration without memory and without reading the data."""
    import torch

    from workbench.networks import build_network

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build_network(config.model, 10, 3, **config.model_args)


def _lines(file: str) -> list[str]:
    from workbench.files import local_path

    try:
        return [line.strip() for line in local_path(file).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"Cannot read {file} ({error}). Give a text file with one name per line.") from error
