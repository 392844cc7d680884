"""The command line: `main` runs it; each file of this folder has the commands of one kind."""

import importlib
import signal
import sys
from typing import NoReturn

import click
import typer

from workbench.cli.app import app
from workbench.errors import WorkbenchError, disk_error_message

__all__ = ["app", "main"]

# Typer may bring its own copy of click: its exceptions are recognised by the base class.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130  # the shell's code for Ctrl-C

for kind in ("study", "training", "compare", "model", "tool"):  # in the order of --help
    importlib.import_module(f"workbench.cli.{kind}_commands")


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
        if (cause := disk_error_message(error)) is None:
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


def _say_who_is_away(error: Exception) -> NoReturn:
    """Ends with exit code 1 where the store's server or a database does not answer any more, else raises the error."""
    from workbench.lab.store.client import is_away
    from workbench.lab.store.database import without_password
    from workbench.lab.store.locations import tracking_uri

    if not is_away(error):
        raise error
    store = without_password(tracking_uri())
    print(
        f"workbench: the store ({store}), or the searches' database, does not answer any more "
        f"({str(error).splitlines()[0][:200]}): what is done is kept, and when it is back the same command goes on.",
        file=sys.stderr,
    )
    sys.exit(1)
