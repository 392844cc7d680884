"""The application, and what its commands share.

Commands are thin. Each imports what it needs when it runs, so that `--help` is fast.
"""

import itertools
import os
import re
from typing import Annotated, Optional

import click
import typer
from typer.core import TyperCommand, TyperGroup

from workbench import __version__
from workbench.errors import WorkbenchError, shown, unknown
from workbench.unexpected import HELP, OPTION
from workbench.user_errors import of_user

PAIR = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


class WithDebug:
    """Shows in the help the option that `main` takes from anywhere on the command line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and `--debug` below them."""
        super().format_options(ctx, formatter)
        with formatter.section("Anywhere"):
            formatter.write_dl([(OPTION, HELP)])


class Command(WithDebug, TyperCommand):
    """A command that explains how to set a parameter to those who leave out `-p`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            WorkbenchError: If an argument has the form NAME=VALUE, or -p has a name only.
        """
        sets = [option for option in self.get_params(ctx) if "-p" in option.opts]
        for before, argument, after in zip(["", *args], args, [*args[1:], ""], strict=False) if sets else ():
            if before in ("-p", "--set") and argument.isidentifier():
                value = after if after and not after.startswith("-") else "VALUE"
                raise WorkbenchError(
                    f"-p must have the form NAME=VALUE, got '{argument}'. Write -p {argument}={value}."
                )
            if not before.startswith("-") and PAIR.fullmatch(argument) and not os.path.exists(argument):
                raise WorkbenchError(f"'{argument}' sets a parameter, which needs the option -p. Write -p {argument}.")
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            value = _value_of(getattr(error, "param", None), given)
            if value is not None and value not in error.message:
                error.message += f", got '{shown(value, quote=False)}'"
            raise

    def invoke(self, ctx: click.Context):
        """Run the command.

        Raises:
            WorkbenchError: If a user's code fails in it, also by `sys.exit` and `raise KeyboardInterrupt`.
        """
        try:
            return super().invoke(ctx)
        except BaseException as error:
            mistake = of_user(error)
            if mistake is None:
                raise
            raise mistake from error


def _value_of(option: click.Parameter | None, args: list[str]) -> str | None:
    """Return the text that the command line gives an option."""
    names = option.opts if option is not None else []
    after = [value for name, value in itertools.pairwise(args) if name in names]
    joined = [arg.partition("=")[2] for arg in args if "=" in arg and arg.partition("=")[0] in names]
    return next(iter([*after, *joined]), None)


class Commands(WithDebug, TyperGroup):
    """A group that answers an unknown command with the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """Find the command that the first argument names.

        Raises:
            WorkbenchError: If no command has this name.
        """
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class Listing(Commands):
    """A group with `list` as its default command: `models 'nfnet_f*'` means `models list 'nfnet_f*'`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before arguments that start with neither a command nor an option."""
        if not args or (args[0] not in self.commands and not args[0].startswith("-")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """An application whose commands are of the class `Command`."""

    def command(self, *args, **options):
        """Register a command."""
        return super().command(*args, **{"cls": Command, **options})


app = App(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train, study and compare networks without normalization. Runs are recorded in one store.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Options of the application itself."""
    if version:
        print(f"workbench {__version__}")
        raise typer.Exit()


Set = Annotated[
    Optional[list[str]], typer.Option("-p", "--set", metavar="NAME=VALUE", help="Set a parameter. Repeat for several.")
]


def pairs(texts: list[str] | None, option: str = "-p", example: str = "clip=0.1") -> dict[str, str]:
    """Split the NAME=VALUE texts of a repeated option.

    Args:
        texts: The values of the option. None means none were given.
        option: The option's name, for the error message.
        example: A valid value, for the error message.

    Returns:
        Values by name.

    Raises:
        WorkbenchError: If a text has no `=`, or no name before it.
    """
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WorkbenchError(f"{option} must have the form NAME=VALUE, got '{text}'. Example: {option} {example}")
        values[name.strip()] = value.strip()
    return values
