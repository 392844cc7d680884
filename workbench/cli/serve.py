"""Serves MLflow's pages for the store, and JupyterLab at the notebooks.

Both listen on loopback by default and run until Ctrl-C.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from workbench.environment import inherited, text
from workbench.errors import WorkbenchError
from workbench.lab.store.client import Store
from workbench.lab.store.database import with_driver
from workbench.lab.store.locations import runs_folder, tracking_uri
from workbench.lab.store.views import TRAININGS, page
from workbench.paths import root

START_TIMEOUT = 120  # seconds
# These win over the user's environment: no job runner, and the check of the Host header, which keeps web pages out.
FIXED = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false"}


def serve_ui(host: str, port: int, say: Callable[[str], None], allowed_hosts: str | None = None) -> int:
    """Run MLflow's server until it is stopped, with one worker, no job runner and no telemetry.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        say: Gets the addresses of the views, once the server answers.
        allowed_hosts: Host names under which others reach the server, separated by commas.

    Returns:
        The server's exit code, or 0 after Ctrl-C.

    Raises:
        WorkbenchError: If the store is a server, the port cannot be used, `allowed_hosts` contains a `*`, or the
            server does not start.
    """
    if tracking_uri().startswith("http"):
        raise WorkbenchError(f"The store is a server and has its own pages. Open {tracking_uri()} in a browser.")
    check_port(host, port)
    if allowed_hosts and "*" in allowed_hosts:
        raise WorkbenchError(
            f"--allowed-hosts must be names without *, got {allowed_hosts}. With * any web page could read the store."
        )
    store = Store()
    named = {}
    if allowed_hosts:  # MLflow then accepts only these, so local names are added
        named["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"{allowed_hosts},localhost:{port},127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        with_driver(tracking_uri()),
        "--default-artifact-root",
        (runs_folder() / "artifacts").as_uri(),
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with open(runs_folder() / "ui.log", "w") as log:
        server = subprocess.Popen(
            command,
            env=inherited(named | FIXED),
            stdout=log,
            stderr=log,
            cwd=runs_folder(),
        )
        try:
            address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
            wait_until_healthy(address, server, log.name)
            say(f"The store is at {address}/#/experiments?workflowType=machine_learning   (Ctrl-C stops the server)")
            for mode in ("full", "quick"):
                number = store.experiment_id("trainings", mode)
                say(f"Views of the {'trainings' if mode == 'full' else 'quick trainings'}:")
                for key in TRAININGS:
                    say(f"  {key:12} {page(address, number, key)}")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait()


def wait_until_healthy(address: str, server: subprocess.Popen, log: str) -> None:
    """Wait until the server answers at /health.

    Args:
        address: The server's address, with http://.
        server: Its process.
        log: Its log file, for the error message.

    Raises:
        WorkbenchError: If the process ends, or does not answer within 120 seconds.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise WorkbenchError(f"MLflow's server did not start. Read {log}, or try another port with --port.")


def check_port(host: str, port: int) -> None:
    """Check that the port can be used, before anything starts.

    Raises:
        WorkbenchError: If the port is out of range or taken, or the host is unknown.
    """
    if not 0 < port < 2**16:
        raise WorkbenchError(f"--port must be between 1 and 65535, got {port}. Leave it out to use the default.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise WorkbenchError(f"Unknown host {host} ({error.strerror}). Choose another with --host.") from error
        except OSError as error:
            raise WorkbenchError(
                f"Cannot use port {port} on {host} ({error.strerror}). Choose another, such as --port {port + 1}."
            ) from error


def lab_environment() -> dict[str, str]:
    """Make the environment for JupyterLab.

    It holds the root, and the settings in the root's .jupyter, which stop JupyterLab from asking the network for news.
    """
    settings = [str(root() / ".jupyter"), text("JUPYTER_CONFIG_PATH")]
    return inherited({"WORKBENCH_ROOT": str(root()), "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, settings))})


def serve_lab(port: int, browser: bool) -> int:
    """Run JupyterLab on loopback at notebooks/, and return its exit code."""
    check_port("127.0.0.1", port)
    Store()  # creates the store before a kernel needs it
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={root()}",
        "--LabApp.default_url=/lab/tree/notebooks",
        "--ip=127.0.0.1",
        f"--port={port}",
        *([] if browser else ["--no-browser"]),
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    ]
    try:
        return subprocess.run(command, env=lab_environment()).returncode
    except KeyboardInterrupt:
        return 0
