"""The application, and what its commands share. Commands are thin: each imports what it needs when it runs, so that
--help is there at once."""

from typing import Annotated, Optional

import click
import typer
from typer.core import TyperGroup

from workbench.errors import WorkbenchError, unknown


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


def pairs(texts: list[str] | None, option: str = "-p", example: str = "clip=0.1") -> dict[str, str]:
    """The texts NAME=VALUE of a repeated option. Raises: WorkbenchError for one of another form."""
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WorkbenchError(f"{option} (={text}) must have the form NAME=VALUE, e.g. {option} {example}.")
        values[name.strip()] = value.strip()
    return values
