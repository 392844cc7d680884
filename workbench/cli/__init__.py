"""The command line. `main` runs it, and each `*_commands` file defines the commands of one kind."""

import importlib
import signal
import sys

import click
import typer

from workbench.cli.app import app
from workbench.cli.surroundings import adapt_to_surroundings
from workbench.errors import WorkbenchError, disk_error_message
from workbench.program import FAILED, INTERRUPTED, MISTAKE, run_program, say, without_debug

__all__ = ["app", "main"]

# Typer may bring its own copy of click, so its exceptions are found through their base class.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

for kind in ("study", "training", "compare", "model", "tool"):  # in the order of --help
    importlib.import_module(f"workbench.cli.{kind}_commands")


def main() -> None:
    """Run the command line and exit.

    Exit codes: those of `run_program`, and 143 for SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that runs are closed and kernels ended
    arguments, debug = without_debug(sys.argv[1:])
    sys.exit(run_program(lambda: _run(arguments), debug=debug))


def _run(arguments: list[str]) -> int:
    try:
        adapt_to_surroundings()
        code = app(arguments, prog_name="workbench", standalone_mode=False)
    except (ClickException, click.ClickException) as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort, click.Abort):
        code = INTERRUPTED
    except WorkbenchError:
        raise
    except Exception as error:
        if (damage := _damaged_store(error)) is not None:
            say(damage)
            code = MISTAKE
        elif (cause := _lost_server(error)) is not None:
            say(cause)
            code = FAILED
        else:
            raise
    if code == INTERRUPTED:  # Typer itself turns Ctrl-C into this code
        say("The command was interrupted. Finished work is kept; run the same command again to continue.")
    return code


def _damaged_store(error: Exception) -> str | None:
    """Return a message if a database of the store is damaged."""
    if "workbench.lab.store.patience" not in sys.modules:  # the command used no store
        return None
    from workbench.lab.store.patience import damage_message

    return damage_message(error)


def _lost_server(error: Exception) -> str | None:
    """Return a message if the store's server or a database stopped answering."""
    if "workbench.lab.store.client" not in sys.modules:  # the command used no store
        return None
    from workbench.lab.store.client import is_away
    from workbench.lab.store.database import without_password
    from workbench.lab.store.locations import tracking_uri

    if disk_error_message(error) is not None or not is_away(error):
        return None
    return (
        f"The store ({without_password(tracking_uri())}) or the searches' database stopped answering "
        f"({' '.join(str(error).split())[:200]}). Finished work is kept; when the server is back, run the same command "
        "again to continue."
    )
