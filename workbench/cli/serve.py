"""The pages: MLflow's on our store, light and on loopback, and JupyterLab at the notebooks. Both run until Ctrl-C."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from workbench.errors import WorkbenchError
from workbench.lab.store.client import Store
from workbench.lab.store.database import with_driver
from workbench.lab.store.locations import runs_folder, tracking_uri
from workbench.lab.store.views import TRAININGS, page
from workbench.paths import root

START_TIMEOUT = 120  # seconds
# Whatever the user's environment says: no job runner, and the check of the Host header, which keeps web pages out.
FIXED = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false"}


def serve_ui(host: str, port: int, say: Callable[[str], None], allowed_hosts: str | None = None) -> int:
    """Runs MLflow's page until it is stopped: one worker, no job runner, no telemetry; says where the views are once
    it answers."""
    if tracking_uri().startswith("http"):
        raise WorkbenchError(f"the store is a server, which has its own pages: open {tracking_uri()} in a browser.")
    check_port(host, port)
    if allowed_hosts and "*" in allowed_hosts:
        raise WorkbenchError(
            f"--allowed-hosts (={allowed_hosts}) must be names, without *: any page on the web could read the store."
        )
    store = Store()
    named = {}
    if allowed_hosts:  # MLflow then knows these alone
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
            env=os.environ | named | FIXED,
            stdout=log,
            stderr=log,
            cwd=runs_folder(),
        )
        try:
            address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
            wait_until_healthy(address, server, log.name)
            say(f"The store is at {address}/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)")
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
    """Waits for /health. Raises: WorkbenchError when the server ends first, or is not there in time."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise WorkbenchError(f"MLflow's page did not start (see {log}): try another port with --port.")


def check_port(host: str, port: int) -> None:
    """Refuses a port that is taken, before anything starts."""
    if not 0 < port < 2**16:
        raise WorkbenchError(f"port {port} must lie between 1 and 65535: leave --port out for the usual one.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise WorkbenchError(
                f"the host {host} is not known ({error.strerror}): name another with --host."
            ) from error
        except OSError as error:
            raise WorkbenchError(
                f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port {port + 1}."
            ) from error


def lab_environment() -> dict[str, str]:
    """For JupyterLab: the root, and the settings in its .jupyter, which keep it from asking the network for news."""
    settings = [str(root() / ".jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return os.environ | {
        "WORKBENCH_ROOT": str(root()),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, settings)),
    }


def serve_lab(port: int, browser: bool) -> int:
    """Runs JupyterLab on loopback at notebooks/, with the store made before a kernel needs it."""
    check_port("127.0.0.1", port)
    Store()
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
