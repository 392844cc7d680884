"""The commands on networks and their weights."""

from typing import Annotated, Optional

import typer

from workbench.cli.app import App, Listing, app
from workbench.errors import unknown

models_commands = ("list", "activations", "convert", "download", "export")
models = App(
    cls=Listing, help="List the networks, and convert, download or export weights.", invoke_without_command=True
)
app.add_typer(models, name="models")


@models.command("list")
def models_list(
    pattern: Annotated[str, typer.Argument(help="A shell pattern for the names, such as 'nfnet_f*'.")] = "*",
) -> None:
    """List the networks with their sizes and costs.

    Shows parameters, image sizes in pixels, and GMAC: multiply-accumulates in units of 1e9, for one image of the test
    size. The first GMAC column counts what the forward pass computes, the second is as published.
    """
    import torch
    from rich.table import Table

    from workbench.bars import counted
    from workbench.cli.terminal import Terminal
    from workbench.models import create_model, list_models
    from workbench.models.counting import forward_macs, published_macs
    from workbench.models.zoo import entry
    from workbench.weights.released import RELEASED

    names = list_models(pattern)
    if not names:
        raise unknown("model", pattern, [*list_models(), *models_commands])
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("parameters", "train px", "test px", "GMAC, forward", "GMAC, published", "norm", "weights")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column in ("norm", "weights") else "right", no_wrap=True)
    for name in counted(names, desc="counting", unit="network"):
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
    Terminal(200).print(table, highlight=False)


@models.command("activations")
def models_activations() -> None:
    """List the activations with gamma = 1 / std g(z).

    Shows the authors' constant next to the exact value.
    """
    from workbench.models.activations import gamma_table

    shown = gamma_table()
    print(shown.to_string(index=False, formatters={"difference": "{:+.4%}".format}, float_format="%.9g", na_rep="-"))


@models.command("convert")
def models_convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of weights, or the name of a released model.")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="A file to write: .safetensors, .pth, or .npz (the released layout)."),
    ],
    layout: Annotated[
        str, typer.Option(help="workbench, or timm for the names and shapes that timm loads.")
    ] = "workbench",
) -> None:
    """Convert weights from one layout to another.

    Nothing in IN is executed.
    """
    from workbench.weights.checkpoints import convert

    model = convert(source, target, layout=layout)
    print(f"{target}: {model.recipe['name']}, {model.num_classes} classes")
    if model.image_preprocess is not None and (layout != "workbench" or not target.endswith(".safetensors")):
        print(
            "It does not say how test images are made and what the classes are called. Only .safetensors files in the "
            "layout 'workbench' do."
        )


@models.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="A model with released weights. `workbench models` lists them.")],
) -> None:
    """Download released weights into the cache.

    Checks the file's hash, and prints the file. An interrupted download continues where it stopped.
    """
    from workbench.weights.released import find

    print(find(name))


@models.command("export")
def models_export(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of weights, or the name of a released model.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A file to write: .onnx, or .pt2 for torch.export.")],
    fold: Annotated[bool, typer.Option(help="Fold weight standardisation and its constants into the weights.")] = True,
    model: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME",
            help="Your network, such as file.py:function or normfree:file.py:function. Its code runs. "
            "Default: as the file says.",
        ),
    ] = None,
) -> None:
    """Export a network with its weights to ONNX or torch.export.

    The batch size stays free. So does the image size for networks of the library. For others it is that of the
    training.
    """
    from workbench.files import target_path
    from workbench.lab.jobs.stored_network import network_of
    from workbench.weights import export

    target_path(target, (".onnx", ".pt2"))
    name, network, example = network_of(source, model)
    network = export.fold(network) if fold else network
    (export.export_onnx if target.endswith(".onnx") else export.export_pt2)(network, target, example)
    print(f"{target}: {name}{', folded' if fold else ''}")


def _giga(macs: float) -> str:
    return f"{macs / 1e9:.2f}" if macs >= 1e10 else f"{macs / 1e9:.4f}"
