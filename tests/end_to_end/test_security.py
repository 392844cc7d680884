"""Security.

Evidence: the syntax trees of the package, the command lines of the servers, and paths that lead out of the store,
through our calls and through MLflow's. A slow test asks a real server under another host name.
"""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from mlflow.exceptions import MlflowException
from support.checkout import CHECKOUT
from support.messages import missing
from support.mlflow_view import client

from workbench.cli import serve
from workbench.errors import WorkbenchError
from workbench.lab import Store

# ---- no content of a file is executed

LOADS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "marshal.load", "marshal.loads"}
LOADS |= {"shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"}
LOADS |= {"pandas.read_pickle", "torch.jit.load", "torch.export.load", "torch.package.PackageImporter"}
LOADS |= {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"}
LOADS |= {"eval", "exec", "compile", "os.system", "os.popen", "importlib.import_module", "exec_module"}
ONLY_WITH = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
ALLOWED = {
    ("weights/pickles.py", "pickle._Unpickler"): "the reader that admits the few names of a dict of arrays",
    ("user_code.py", "importlib.import_module"): "a user's own network, named on the command line",
    ("user_code.py", "exec_module"): "the same, from a file",
    ("pool/task.py", "importlib.import_module"): "functions of this package, named by who submits a task",
    ("lab/__init__.py", "importlib.import_module"): "the package's own modules, by a fixed list",
    ("claims/registry.py", "importlib.import_module"): "the claim files of this package",
    ("lab/studies/plain_yaml.py", "yaml.load"): "a subclass of SafeLoader, after tags and sizes are checked",
    ("cli/__init__.py", "importlib.import_module"): "the files of commands, by a fixed list",
}


def dangers(source):
    """Yield the functions in a module's source that execute or unpickle, under their full names."""
    tree = ast.parse(source)
    alias = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            alias |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def name(node):
        if isinstance(node, ast.Name):
            return alias.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{name(node.value)}.{node.attr}"
        return ""

    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            wanted = ONLY_WITH.get(name(node.func))
            if wanted and given.get(wanted[0]) is wanted[1]:
                safe.add(node.func)
            if given.get("shell") is True:
                yield "shell=True"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and node not in safe:
            dotted_name = name(node)
            if dotted_name in LOADS or dotted_name in ONLY_WITH:
                yield dotted_name
            elif isinstance(node, ast.Attribute) and node.attr == "exec_module":
                yield "exec_module"


def test_the_package_neither_unpickles_nor_executes_content_of_files():
    package = CHECKOUT / "workbench"
    files = sorted(package.rglob("*.py"))
    uses = {(str(file.relative_to(package)), danger) for file in files for danger in dangers(file.read_text())}
    assert len(files) > 50
    assert uses == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("import pickle as p\nread = p.loads", "pickle.loads"),
        ("from pickle import loads as read\nread(b)", "pickle.loads"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load"),
        ("from torch import load\nload(f)", "torch.load"),
        ("import numpy as np\nnp.load(f)", "numpy.load"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy.load"),
        ("import yaml\nyaml.load(f, yaml.SafeLoader)", "yaml.load"),
        ("def f():\n    from joblib import load\n    return load(f)", "joblib.load"),
        ("eval('1')", "eval"),
        ("import pandas as pd\npd.read_pickle(f)", "pandas.read_pickle"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell=True"),
        ("spec.loader.exec_module(m)", "exec_module"),
    ],
)
def test_the_check_finds_dangerous_calls_under_any_name(source, danger):
    assert list(dangers(source)) == [danger]


def test_the_check_accepts_safe_calls():
    source = "import torch, yaml, numpy as np\nmodel.eval()\ntorch.load(f, weights_only=True)\nyaml.safe_load(f)\n"
    assert list(dangers(source + "np.load(f, allow_pickle=False)\nimport re\nre.compile('x')")) == []


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_forged_checkpoint_is_not_executed(tmp_path, monkeypatch):
    import pickle

    import torch

    from workbench.files import sha256
    from workbench.models import create_model
    from workbench.training.checkpoint import Checkpoints

    monkeypatch.chdir(tmp_path)
    model = create_model("nf_resnet_tiny", 2)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save("key", 1, model, {})
    (place,) = (tmp_path / "c").iterdir()
    torch.save(Evil(), place / "state.pt")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["state.pt"] = sha256(place / "state.pt")
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.latest("key", model, torch.device("cpu"))
    assert not (tmp_path / "executed").exists()


def test_yaml_files_cannot_make_objects(root, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "!!python/object/apply:os.mkdir [executed]"
    (tmp_path / "recipe.yaml").write_text(f"model: {evil}\n")
    (tmp_path / "mine.yaml").write_text(f"question: {evil}\nnotebook: large_batch.ipynb\n")
    for arguments in (["train", "recipe.yaml"], ["study", "mine.yaml"], ["train", "-p", f"model_args={evil}"]):
        assert command(*arguments)[0] == 2
    assert command("study", "large_batch", "--dry-run", "-p", f"seeds={evil}")[0] == 2
    assert not (tmp_path / "executed").exists()


def test_jupyterlab_does_not_ask_the_network_for_news(monkeypatch):
    """Builds the page's settings as JupyterLab's server does, in the environment that starts it."""
    from jupyterlab_server.config import get_page_config

    monkeypatch.setenv("WORKBENCH_ROOT", str(CHECKOUT))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", serve.lab_environment()["JUPYTER_CONFIG_PATH"])
    page = get_page_config([])
    assert "@jupyterlab/apputils-extension:announcements" in page["disabledExtensions"]


# ---- paths of a run stay inside the run

OUTSIDE = ["../x", "a/../../x", "/tmp/x", "..", "", "/", "~/x", "..\\x", "%2e%2e/x", "%2Ftmp/x", "file:///tmp/x"]


@pytest.fixture
def run(root):
    store = Store()
    return store, store.open_run("checks", "net", {}, {}, source="workbench check")


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leads_out_of_the_run_is_refused(run, root, tmp_path, path):
    import pandas as pd
    from matplotlib.figure import Figure

    store, run_id = run
    (tmp_path / "mine.txt").write_text("mine")
    before = sorted(root.parent.rglob("*"))
    for call in (
        lambda: store.log_text(run_id, "x", path),
        lambda: store.read_text(run_id, path),
        lambda: store.log_file(run_id, tmp_path / "mine.txt", path),
        lambda: store.log_table(run_id, pd.DataFrame({"a": [1]}), path),
        lambda: store.log_figure(run_id, Figure(), path),
    ):
        with pytest.raises(WorkbenchError, match=r"\.\.") as error:  # the rule forbids .., an unreadable file does not
            call()
        assert path in str(error.value)
    assert sorted(root.parent.rglob("*")) == before


def test_paths_inside_the_run_are_accepted(run, tmp_path):
    store, run_id = run
    store.log_text(run_id, "x", "notes/my file.v2..txt")
    (tmp_path / "mine.txt").write_text("mine")
    store.log_file(run_id, tmp_path / "mine.txt", "notebook")
    assert store.read_text(run_id, "notes/my file.v2..txt") == "x"
    assert store.artifacts(run_id) == ["notebook/mine.txt", "notes/my file.v2..txt"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/tmp/x"])
def test_mlflow_itself_refuses_such_paths_too(run, root, path):
    """The page and other clients call MLflow directly."""
    store, run_id = run
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(MlflowException):
        client(store).log_text(run_id, "x", path)
    with pytest.raises(MlflowException):
        client(store).download_artifacts(run_id, path)
    with pytest.raises(MlflowException):
        client(store).list_artifacts(run_id, path)
    assert {f for f in root.parent.rglob("*")} - set(before) <= {
        root / "mlruns" / "artifacts",
        root / "mlruns" / "artifacts" / "checks",
        root / "mlruns" / "artifacts" / "checks" / run_id,
        root / "mlruns" / "artifacts" / "checks" / run_id / "artifacts",
    }


def test_a_link_that_leads_out_of_the_run_is_not_followed(run, root, tmp_path):
    store, run_id = run
    store.log_text(run_id, "x", "a.txt")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    folder = root / "mlruns" / "artifacts" / "checks" / run_id / "artifacts"
    (folder / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(WorkbenchError) as error:
        store.read_text(run_id, "out/key")
    assert missing(str(error.value), [str(folder / "out" / "key"), "link"]) == []
    with pytest.raises(MlflowException):
        store.log_text(run_id, "changed", "out/key")
    assert (tmp_path / "secret" / "key").read_text() == "secret"


# ---- who may read the store through a page


@pytest.fixture
def started(root, monkeypatch):
    """Records the (command, environment) that would start a page, and starts nothing."""
    starts = []

    def record(command, env=None, **_):
        starts.append((command, env))
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.subprocess, "Popen", record)
    monkeypatch.setattr(serve.subprocess, "run", record)
    return starts


def value_of(command, option):
    return command[command.index(option) + 1]


def test_the_page_listens_on_loopback_by_default_and_checks_host_names(started, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    command("ui", "--port", 5999)
    command("ui", "--port", 5999, "--host", "0.0.0.0", "--allowed-hosts", "node1:5999")
    (first, environment), (second, open_environment) = started
    assert value_of(first, "--host") == "127.0.0.1"
    assert value_of(second, "--host") == "0.0.0.0"
    for line, env in ((first, environment), (second, open_environment)):
        assert "--disable-security-middleware" not in line and "--allowed-hosts" not in line
        assert env["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] == "false"
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" not in environment and "MLFLOW_SERVER_ALLOWED_HOSTS" not in os.environ
    assert open_environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "node1:5999,localhost:5999,127.0.0.1:5999"


@pytest.mark.parametrize("hosts", ["*", "node1,*", "*.example.org"])
def test_a_star_is_refused_as_an_allowed_host(started, root, command, hosts):
    code, _, errors = command("ui", "--port", 5999, "--allowed-hosts", hosts)
    assert code == 2 and missing(errors, ["--allowed-hosts", hosts]) == [] and not started


def test_jupyterlab_listens_on_loopback_and_keeps_its_token(started, command):
    command("lab", "--port", 5999, "--no-browser")
    ((line, _),) = started
    assert "--ip=127.0.0.1" in line
    text = " ".join(line).lower()
    assert all(
        word not in text for word in ("token", "password", "allow_origin", "allow_remote_access", "disable_check")
    )


def ask(port, host):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=trainings"
    )
    request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_real_page_answers_on_loopback_and_refuses_foreign_host_names(root):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"}
    page = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "ui", "--port", str(port)], env=environment, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 150
        while b"The store is at" not in page.stdout.readline() and time.monotonic() < deadline:
            assert page.poll() is None
        code, text = ask(port, f"127.0.0.1:{port}")
        assert code == 200 and '"trainings"' in text
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
            code, text = ask(port, host)
            assert code == 403 and "trainings" not in text, (host, code)
        for other in addresses():  # the page listens on loopback only
            with pytest.raises(OSError):
                socket.create_connection((other, port), timeout=3)
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(60)


def addresses():
    """The IPv4 addresses of this machine, except loopback."""
    ipv4 = [a for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    return [a.address for a in ipv4 if not a.address.startswith("127.")]
