"""The command line. `main` runs it, and each `*_commands` file defines the commands of one kind."""

import importlib
import signal
import sys
from typing import NoReturn

import click
import typer

from workbench.cli.app import app
from workbench.errors import WorkbenchError, disk_error_message

__all__ = ["app", "main"]

# Typer may bring its own copy of click, so its exceptions are found through their base class.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130  # the shell's code for Ctrl-C

for kind in ("study", "training", "compare", "model", "tool"):  # in the order of --help
    importlib.import_module(f"workbench.cli.{kind}_commands")


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 something failed, 2 a mistake of the user (one message, no traceback), 130 Ctrl-C,
    143 SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that runs are closed and kernels ended
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
        _refuse_damaged(error)
        if (cause := disk_error_message(error)) is None:
            _report_lost_server(error)
        print(
            f"workbench: Cannot write to the disk ({cause}). Free some space, or choose another place with "
            "WORKBENCH_ROOT or MLFLOW_TRACKING_URI.",
            file=sys.stderr,
        )
        code = 2
    if code == INTERRUPTED:  # Typer itself turns Ctrl-C into this code
        print(
            "workbench: The command was interrupted. Finished work is kept; run the same command again to continue.",
            file=sys.stderr,
        )
    sys.exit(code)


def _refuse_damaged(error: Exception) -> None:
    """Exit with code 2 if a database of the store is damaged."""
    from workbench.lab.store.patience import is_damaged

    if damage := is_damaged(error):
        print(f"workbench: {damage}", file=sys.stderr)
        sys.exit(2)


def _report_lost_server(error: Exception) -> NoReturn:
    """Exit with code 1 if the store's server or a database stopped answering. Otherwise raise the error again."""
    from workbench.lab.store.client import is_away
    from workbench.lab.store.database import without_password
    from workbench.lab.store.locations import tracking_uri

    if not is_away(error):
        raise error
    store = without_password(tracking_uri())
    print(
        f"workbench: The store ({store}) or the searches' database stopped answering "
        f"({str(error).splitlines()[0][:200]}). Finished work is kept; when the server is back, run the same command "
        "again to continue.",
        file=sys.stderr,
    )
    sys.exit(1)
