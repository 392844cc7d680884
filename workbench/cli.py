"""The command line. Thin: each command imports what it needs when it runs, so that --help is there at once."""

import signal
import sys
from typing import Annotated, NoReturn, Optional

import click
import typer
from typer.core import TyperGroup

from workbench.errors import WorkbenchError, of_the_disk, unknown

# Typer may bring its own copy of click: its exceptions are told by the base class.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130  # the shell's code for Ctrl-C


class Commands(TyperGroup):
    """Refuses an unknown command with the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class Listing(Commands):
    """A group whose command `list` may be left out: `models 'nfnet_f*'` is `models list 'nfnet_f*'`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and not args[0].startswith("-")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A workbench for networks without normalization: studies, trainings and their store.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Set = Annotated[
    Optional[list[str]], typer.Option("-p", "--set", metavar="NAME=VALUE", help="Set a parameter; may be repeated.")
]


@app.command()
def study(
    specs: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[SPEC]...", help="Study files, or names in studies/. None: the tour, in quick form."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same study in seconds, on the embedded data; its verdict is a DEMO.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every study in studies/.")] = False,
    rerun: Annotated[
        Optional[str],
        typer.Option(
            metavar="failed|stale|all",
            help="Of what to execute, only the failed, or only the stale; or all, finished ones too. "
            "Finished trainings are reused in any case.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and why, what is reused, how long; then stop.")
    ] = False,
    plan_file: Annotated[
        Optional[str],
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Write the trainings that are missing there, as pure data, and run none: "
            "`python -m workbench.training FILE` runs them where only torch is, `workbench import` brings them back.",
        ),
    ] = None,
    executor: Annotated[
        Optional[str],
        typer.Option(help="Where trainings run: inline, processes or ray. None: processes for several workers."),
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(help="Trainings at a time. None: one a GPU; without GPUs one, inline.")
    ] = None,
    gpus: Annotated[Optional[float], typer.Option(help="GPUs of one training, 0 to 1, e.g. 0.5.")] = None,
    threads: Annotated[Optional[int], typer.Option(help="Threads of one training. None: an equal part.")] = None,
    parameters: Set = None,
) -> None:
    """Run studies: each executes a notebook as a run of the store. What is finished is reused."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if specs and everything:
        raise WorkbenchError("give study names or --all, not both.")
    tour = not specs and not everything
    if tour:
        console.print("The tour: every question once, in quick form.", highlight=False)
    if parameters and (not specs or len(specs) > 1):
        raise WorkbenchError("-p sets parameters of one study: name it, e.g. `study large_batch -p clip=0.1`.")

    from workbench.lab.executors import Choice

    choice = Choice.of(executor, workers, gpus, threads)

    from workbench.lab.study import Study, all_studies

    studies = [Study.load(spec) for spec in (specs or all_studies())]
    if tour:
        studies = sorted((s for s in studies if s.tour), key=lambda s: s.minutes.get("quick", 99))
    overrides = _pairs(parameters)
    for s in studies:
        s.executions(quick=quick or tour, overrides=overrides)

    from workbench.lab.launcher import plan
    from workbench.lab.show import run_and_show, show_plan, show_results
    from workbench.lab.store import Store

    store = Store()
    if not dry_run:
        store.close_orphans()
    executions = plan(studies, store, quick=quick or tour, overrides=overrides, rerun=rerun)
    show_plan(executions, choice.count, console)
    if dry_run:
        return
    if plan_file is not None:
        from workbench.lab.planning import plan_trainings

        missing = plan_trainings(executions, plan_file, lambda line: console.print(line, highlight=False))
        rest = "" if missing else ": none is missing, so the study itself is what remains to be run, here"
        console.print(f"{plan_file}: {len(missing)} trainings{rest}", highlight=False)
        return
    if not show_results(run_and_show(executions, store, choice, console), store, console):
        raise typer.Exit(1)


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

    from workbench.lab.recipes import parse_config, recipe_text
    from workbench.lab.trainings import check, help_training
    from workbench.training.distributed import World
    from workbench.training.inputs import source

    config = parse_config(_pairs(parameters), recipe)
    if show:
        print(recipe_text(config), end="")
        return
    check(config)
    if not World.from_environment().first:
        return help_training(config)
    if save is not None:
        from workbench.models.weights.files import target_path

        target_path(save, (".safetensors",))
    console = Console()
    console.print(f"{config.name} on {source(config)}", highlight=False)

    from workbench.lab.session import Session
    from workbench.lab.store import Store
    from workbench.lab.trainings import run_training

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
    from workbench.lab.evaluations import evaluate as run

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
    for name, found, theirs in (("top-1", scores.top1, published[0]), ("top-5", scores.top5, published[1])):
        beside = f"   published, ImageNet: {theirs} %" if theirs else ""
        interval = f"{found.mean:.2%} [{found.low:.2%}, {found.high:.2%}] of {found.n:,}"
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

    from workbench.lab.checks import check_model, parse_arguments, show_blocks

    console = Console(width=None if sys.stdout.isatty() else 160)
    run_id, found = check_model(
        model,
        arguments=parse_arguments(_pairs(parameters)),
        data=data,
        image_size=image_size,
        in_channels=in_channels,
        batch_size=batch_size,
        precision=precision,
        blocks=[name.strip() for name in blocks.split(",") if name.strip()] if blocks else None,
        seed=seed,
        device=device,
    )
    show_blocks(found.table, console)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"run {run_id}", highlight=False)
    if not found.ok:
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

    from workbench.lab.replay import replay as run_again
    from workbench.lab.replay import sentences, show_steps

    console = Console(width=None if sys.stdout.isatty() else 160)
    say = lambda line: print(line, flush=True)
    found = run_again(run, back=back, clip=clip, lr=lr, device=device, progress=sys.stderr.isatty(), say=say)
    show_steps(found, console)
    for line in (found.verdict, *sentences(found), f"run {found.run_id}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def compare(
    what: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[WHAT]...", help="Studies, or trainings by the beginning of their run ids. None: all."),
    ] = None,
    tags: Annotated[
        Optional[list[str]], typer.Option("--tag", metavar="NAME=VALUE", help="Only with this tag; may be repeated.")
    ] = None,
    only: Annotated[
        Optional[str], typer.Option("--filter", metavar="TEXT", help="Only what MLflow's filter lets pass.")
    ] = None,
    role: Annotated[Optional[str], typer.Option(metavar="screen|search|confirm", help="Only with this role.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick trainings, which are demonstrations.")] = False,
    equal: Annotated[
        Optional[str],
        typer.Option(metavar="seconds|samples", help="Accuracy at the largest compute that all of them reached."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to print; 0: all.")] = 30,
    csv: Annotated[Optional[str], typer.Option(metavar="FILE", help="Keep the whole table.")] = None,
    curves: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Draw learning curves with bands: .png, .svg or .pdf.")
    ] = None,
    parallel: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Draw parallel coordinates: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Compare trainings: grouped over seeds, ranked, and a tie where the seeds do not tell them apart.

    \b
    workbench compare large_batch
    workbench compare large_batch --tag arm=NF+AGC --equal samples --curves curves.pdf
    workbench compare --filter "params.batch_size = '256' and metrics.failed = 0" --csv table.csv
    workbench compare clipping_search --role search --parallel search.png
    """
    from rich.console import Console

    from workbench.lab.compare import selection, show
    from workbench.lab.compare.table import from_store
    from workbench.lab.store import Store

    for file in filter(None, (curves, parallel)):
        from workbench.lab.compare.figures import check_file

        check_file(file)
    store, mode = Store(), "quick" if quick else "full"
    wanted = _pairs(tags, "--tag", "arm=NF+AGC")
    found = from_store(store, what or [], tags=wanted, filter=only, role=role, mode=mode, equal=equal)
    show.show(found, Console(width=None if sys.stdout.isatty() else 200), top)
    if csv is not None:
        show.to_csv(found, csv)
    if curves is not None:
        from workbench.lab.compare.figures import curves_figure, save

        x = "seconds" if equal == "seconds" else "samples_seen"
        save(curves_figure(found, selection.curves(store, found.rows.run_id), x), curves)
    if parallel is not None:
        from workbench.lab.compare.figures import parallel_figure, save

        save(parallel_figure(found), parallel)
    pages = "" if store.uri.startswith("http") else " (workbench ui first)"
    print(f"In MLflow{pages}:\n  {show.address(store, found, mode)}")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run id or its beginning, or a group's config.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other.")],
) -> None:
    """Set two trainings, two groups of seeds or two executions of a notebook side by side: what differs, and results.

    \b
    workbench diff 8b8b395a 03c1f2aa       two trainings, or two executions: run ids or their beginnings
    workbench diff 5f0a91c2 77ab03de       two groups of seeds, as the column "config" of `compare` names them
    """
    from rich.console import Console

    from workbench.lab.compare.diff import diff as set_beside
    from workbench.lab.compare.diff import show
    from workbench.lab.store import Store

    show(set_beside(Store(), a, b), Console(width=None if sys.stdout.isatty() else 160))


models_commands = ("list", "activations", "convert", "download", "export")
models = typer.Typer(
    cls=Listing, help="List the networks; convert, download and export weights.", invoke_without_command=True
)
app.add_typer(models, name="models")


@models.command("list")
def models_list(pattern: Annotated[str, typer.Argument(help="A shell pattern, e.g. 'nfnet_f*'.")] = "*") -> None:
    """The networks: parameters, image sizes, and multiply-accumulates at the test size, by forward and as published."""
    import torch
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

    from workbench.models import create_model, list_models
    from workbench.models.checkpoints import RELEASED
    from workbench.models.counting import forward_macs, published_macs
    from workbench.models.zoo import entry

    names = list_models(pattern)
    if not names:
        raise unknown("model", pattern, [*list_models(), *models_commands])
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("parameters", "train px", "test px", "GMAC, forward", "GMAC, published", "norm", "weights")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column in ("norm", "weights") else "right", no_wrap=True)
    for name in tqdm(names, desc="counting", leave=False, disable=not sys.stderr.isatty()):
        with torch.device("meta"):
            model = create_model(name)
        row, published = entry(name), published_macs(model, entry(name).test_size)
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()):,}",
            str(row.train_size),
            str(row.test_size),
            _giga(forward_macs(model, row.test_size)),
            _giga(published) if published else "",
            model.norm,
            RELEASED[name].file_name if name in RELEASED else "",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)


@models.command("activations")
def models_activations() -> None:
    """The activations and their gamma, 1 / std g(z): the authors' constant beside the exact one."""
    from workbench.models.activations import gamma_table

    shown = gamma_table()
    print(shown.to_string(index=False, formatters={"difference": "{:+.4%}".format}, float_format="%.9g", na_rep="-"))


@models.command("convert")
def models_convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of weights, or a released model's name.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="Ends in .safetensors, .pth, or .npz (as released).")],
    layout: Annotated[str, typer.Option(help="workbench, or timm: names and shapes as timm loads them.")] = "workbench",
) -> None:
    """Read weights in any layout and write them in another; nothing in IN is executed."""
    from workbench.models.checkpoints import convert

    model = convert(source, target, layout=layout)
    print(f"{target}: {model.recipe['name']}, {model.num_classes} classes")


@models.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="A model with released weights, see `workbench models`.")],
) -> None:
    """Fetch released weights into the cache, checked by their hash; an interrupted download is continued."""
    from workbench.models.checkpoints import find

    print(find(name))


@models.command("export")
def models_export(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of weights, or a released model's name.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="Ends in .onnx, or in .pt2 for torch.export.")],
    fold: Annotated[bool, typer.Option(help="Fold weight standardisation and its constants into the weights.")] = True,
) -> None:
    """Write a network with weights as ONNX or torch.export; batch and image size stay free."""
    from pathlib import Path

    if Path(target).suffix not in (".onnx", ".pt2"):
        raise WorkbenchError(f"{target} must end in .onnx or .pt2.")
    from workbench.models import export
    from workbench.models.checkpoints import load_checkpoint

    model = load_checkpoint(source)
    name = model.recipe["name"]
    model = export.fold(model) if fold else model
    (export.export_onnx if target.endswith(".onnx") else export.export_pt2)(model, target)
    print(f"{target}: {name}{', folded' if fold else ''}")


@app.command()
def bench(
    names: Annotated[
        Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Programs of benchmarks/. None: all of them.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[
        Optional[int],
        typer.Option(min=1, help="Turns of each candidate, for a quick look that is not kept."),
    ] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Only put the kept rows into the README's table.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name the programs and stop.")] = False,
) -> None:
    """Measure speed and memory beside the peer, in turns; rows go to docs/results/benchmarks/.

    Rows beside timm need timm 1.0.31 in the environment; those beside torch alone run without it.
    """
    from workbench.lab import bench as benchmarks
    from workbench.paths import root

    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ["cpu", "cuda"])
    if listing:
        print("\n".join(benchmarks.names()))
        return
    if readme:
        benchmarks.write_readme(root() / "README.md", benchmarks.table(benchmarks.results_folder()))
        return
    from workbench.training.loop import pick_device

    pick_device(device)
    failed = benchmarks.run(names or [], device, rounds, lambda line: print(line, flush=True))
    if failed:
        print(f"workbench: {', '.join(failed)} failed, see above; the others are kept.", file=sys.stderr)
        raise typer.Exit(1)


@app.command("import")
def import_(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What `python -m workbench.training --out DIR` wrote.")],
) -> None:
    """Put the results of a detached run into the store, as if its trainings had been run here."""
    from tqdm import tqdm

    from workbench.lab.imports import import_results
    from workbench.lab.store import Store

    with tqdm(desc="importing", unit="run", leave=False, disable=not sys.stderr.isatty()) as bar:

        def told(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        found = import_results(folder, Store(), told)
    for line in (*found.damaged, *found.failed):
        print(line, file=sys.stderr)
    print(found)
    if found.other_code:
        print(f"{found.other_code} of them are of other code than this: no study asks for them.")
    if found.damaged:
        raise typer.Exit(1)


@app.command()
def claims(
    which: Annotated[
        Optional[list[str]], typer.Argument(metavar="[CLAIM]...", help="Numbers or studies; all without.")
    ] = None,
    where: Annotated[
        str, typer.Option("--from", help="auto, store or docs: the newest full runs, or the committed tables.")
    ] = "auto",
    export: Annotated[
        bool,
        typer.Option("--export", help="Write the store's tables to docs/results, and the verdicts into the README."),
    ] = False,
    csv: Annotated[Optional[str], typer.Option(help="Write the verdicts to this file, too.")] = None,
) -> None:
    """Judge the paper's claims anew, from the tables that the studies left; p-values adjusted over them (Holm)."""
    from rich.console import Console

    from workbench.lab.bench import write_readme
    from workbench.lab.claims.recompute import export as write
    from workbench.lab.claims.recompute import judged, results_folder
    from workbench.lab.claims.registry import claims as chosen
    from workbench.lab.claims.show import as_markdown, as_table, show_claims

    if where not in ("auto", "store", "docs"):
        raise unknown("source of evidence", where, ("auto", "store", "docs"))
    shown = chosen(which)
    found = [one for one in judged(chosen(), where=where) if one.claim in shown]
    show_claims(found, Console(width=None if sys.stdout.isatty() else 200))
    if csv:
        as_table(found).to_csv(csv, index=False)
    if export:
        for file in write(found, results_folder()):
            print(f"written: {file}")
        readme = results_folder().parent.parent / "README.md"
        write_readme(readme, as_markdown(judged(chosen(), where="docs")), "claims")
        print(f"written: the table in {readme}")


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what was found; without it, only say what would be done.")
    ] = False,
    moved: Annotated[
        bool,
        typer.Option("--moved", help="This store was moved or copied here, and nobody uses it."),
    ] = False,
) -> None:
    """Find what a crash left: processes, runs, points, trials, files. Exit code 1 where something is left to mend."""
    from workbench.lab.doctor import doctor as look

    if not look(fix, moved, lambda line: print(line, flush=True)):
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="The port.")] = 5000,
    host: Annotated[str, typer.Option(help="The address to listen on; loopback unless told otherwise.")] = "127.0.0.1",
    allowed_hosts: Annotated[
        Optional[str],
        typer.Option(help="Names under which others reach it, comma-separated, when --host is not loopback."),
    ] = None,
) -> None:
    """Open the MLflow page on the store."""
    print("Starting the page ...", flush=True)
    from workbench.lab.ui import serve_ui

    raise typer.Exit(serve_ui(host, port, lambda line: print(line, flush=True), allowed_hosts))


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="The port.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab at the notebooks."""
    from workbench.lab.ui import serve_lab

    raise typer.Exit(serve_lab(port, browser))


def _pairs(texts: list[str] | None, option: str = "-p", example: str = "clip=0.1") -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WorkbenchError(f"{option} (={text}) must have the form NAME=VALUE, e.g. {option} {example}.")
        pairs[name.strip()] = value.strip()
    return pairs


def _say_who_is_away(error: Exception) -> NoReturn:
    """Ends with exit code 1 where the store's server or a database does not answer any more, else raises the error."""
    from workbench.lab.database import without_password
    from workbench.lab.store import is_away, tracking_uri

    if not is_away(error):
        raise error
    store = without_password(tracking_uri())
    print(
        f"workbench: the store ({store}), or the searches' database, does not answer any more "
        f"({str(error).splitlines()[0][:200]}): what is done is kept, and when it is back the same command goes on.",
        file=sys.stderr,
    )
    sys.exit(1)


def _giga(macs: float) -> str:
    return f"{macs / 1e9:.2f}" if macs >= 1e10 else f"{macs / 1e9:.4f}"


def _lines(file: str) -> list[str]:
    from pathlib import Path

    try:
        return [line.strip() for line in Path(file).expanduser().read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"cannot read {file} ({error}).") from error


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and exit code 2, Ctrl-C exit code 130."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that runs are closed and kernels ended
    try:
        code = app(prog_name="workbench", standalone_mode=False)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        code = 2
    except (ClickException, click.ClickException) as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort, click.Abort):
        code = INTERRUPTED
    except Exception as error:
        if (cause := of_the_disk(error)) is None:
            _say_who_is_away(error)
        print(
            f"workbench: the disk is full or may not be written ({cause}): free some space, or choose another place "
            "with WORKBENCH_ROOT or MLFLOW_TRACKING_URI.",
            file=sys.stderr,
        )
        code = 2
    if code == INTERRUPTED:  # Typer itself turns Ctrl-C into this code
        print(
            "workbench: interrupted; finished trainings and studies are kept, and the same command goes on from there.",
            file=sys.stderr,
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
