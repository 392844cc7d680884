"""The script ./run. Evidence: the script itself, with stand-ins for programs that a fresh machine may lack."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from support.checkout import CHECKOUT
from support.messages import missing


@pytest.fixture
def clone(tmp_path):
    """A folder with the script and a package description without dependencies, so that only the script's logic runs."""
    folder = tmp_path / "a clone with spaces"
    folder.mkdir()
    shutil.copy(CHECKOUT / "run", folder / "run")
    (folder / "constraints.txt").write_text("")
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    return folder


def run(folder, *arguments, path=None, **environment):
    env = {
        k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "WORKBENCH_ROOT", "PYTHONPATH")
    }
    env |= {"PATH": path or "/usr/bin:/bin", **environment}
    return subprocess.run([str(folder / "run"), *arguments], capture_output=True, text=True, env=env, cwd="/")


def stand_in(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def finished(folder):
    """Make the folder look set up: a .venv whose python prints how it was called, and the matching fingerprint."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    stand_in(folder / ".venv" / "bin", "python", 'echo "called: $*"; echo "root: $WORKBENCH_ROOT"')
    data = (folder / "pyproject.toml").read_bytes() + (folder / "constraints.txt").read_bytes() + f"{folder}\n".encode()
    checksum = subprocess.run(["cksum"], input=data, capture_output=True).stdout
    (folder / ".venv" / ".complete").write_bytes(checksum)


def test_a_finished_environment_is_used_at_once_from_any_folder(clone):
    finished(clone)
    started = time.perf_counter()
    done = run(clone, "study", "large_batch", "-p", "clip=0.1")
    assert time.perf_counter() - started < 2
    assert "called: -m workbench.cli study large_batch -p clip=0.1" in done.stdout
    assert f"root: {clone}" in done.stdout


def test_the_command_test_passes_its_arguments_to_pytest(clone):
    finished(clone)
    assert (
        "called: -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --slow -k agc"
        in run(clone, "test", "--slow", "-k", "agc").stdout
    )
    assert "called: -m pytest -s -k agc" in run(clone, "test", "-s", "-k", "agc").stdout  # the terminal is needed


def test_the_script_works_through_a_symbolic_link(clone, tmp_path):
    finished(clone)
    (tmp_path / "link").symlink_to(clone / "run")
    done = subprocess.run(
        [str(tmp_path / "link"), "models"], capture_output=True, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
    )
    assert "called: -m workbench.cli models" in done.stdout


def test_an_old_python_is_refused_with_both_versions(clone, tmp_path):
    tools = tmp_path / "tools"
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python"):
        stand_in(tools, name, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    done = run(clone, "setup", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 2
    assert missing(done.stderr, ["Python 3.9.2", "3.11"]) == []


PYTHON = """
case "$*" in
*sys.version_info*) exit 0 ;;
*distribution*) exit 1 ;;
*fcntl*) exit 0 ;;
*"-m venv"*) for target; do :; done; mkdir -p "$target/bin"; cp "$0" "$target/bin/python" ;;
*"-m pip"*) echo "$PIP_SAYS"; exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("pip_says", "names"),
    [
        ("OSError: [Errno 28] No space left on device", ["disk", "3000 MB"]),
        ("ERROR: No matching distribution found for torch==2.13.0", ["distribution", "torch==2.13.0"]),
        ("NewConnectionError: failed to establish", ["index", "network", "proxy"]),
        ("something else", ["something else"]),
    ],
)
def test_a_failed_installation_names_its_cause_and_leaves_no_finished_mark(clone, tmp_path, pip_says, names):
    tools = tmp_path / "tools"
    stand_in(tools, "python3", PYTHON)
    done = run(clone, "setup", path=f"{tools}:/usr/bin:/bin", PIP_SAYS=pip_says)
    assert done.returncode == 2
    assert missing(done.stderr, [*names, f"{clone}/.venv/setup.log"]) == [], done.stderr
    causes = {"disk", "distribution", "index"}
    assert causes & set(re.findall(r"\w+", done.stderr.splitlines()[-1])) == causes & set(names)
    assert not (clone / ".venv" / ".complete").exists()


def test_too_little_disk_is_refused_before_anything_is_made(clone, tmp_path):
    tools = tmp_path / "tools"
    stand_in(tools, "python3", PYTHON)
    stand_in(tools, "df", "echo header; echo dev 100 90 10 90% /")
    done = run(clone, "setup", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 2
    assert missing(done.stderr, ["10 MB", "3000 MB", str(clone)]) == []
    assert not (clone / ".venv").exists()


def test_two_setups_at_once_install_only_once(clone, tmp_path):
    """The second waits for the first and finds it done. The lock is real; pip is a stand-in that takes a second."""
    tools = tmp_path / "tools"
    script = PYTHON.replace("*fcntl*) exit 0", f'*fcntl*) exec {sys.executable} "$@"')
    script = script.replace('echo "$PIP_SAYS"; exit 1', f"echo x >>{tmp_path}/installations; sleep 1; exit 0")
    stand_in(tools, "python3", script)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)}
    both = [
        subprocess.Popen([str(clone / "run"), "setup"], env=env, cwd="/", stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=30)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert all("Ready:" in out for out in outputs)
    assert (tmp_path / "installations").read_text() == "x\n"


def test_an_active_environment_that_has_everything_is_used(clone, tmp_path):
    tools = tmp_path / "tools"
    stand_in(tools, "python3", 'case "$*" in *distribution*) exit 0 ;; *) echo "active: $*" ;; esac')
    done = run(clone, "models", path=f"{tools}:/usr/bin:/bin")
    assert "active: -m workbench.cli models" in done.stdout
    assert not (clone / ".venv").exists()
