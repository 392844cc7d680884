"""Standard streams that are closed, full or not read. Evidence: exit codes, and what reaches the other streams."""

import os
import subprocess
import sys

import pytest
from support.checkout import CHECKOUT

LINES = "def body():\n    for i in range(20000): print(i, flush=True)\n"


def shell(line, program=None, **environment):
    """Run a line of bash, in which PROGRAM stands for a program, and return what came of it."""
    if program is not None:
        code = f"import sys\nfrom workbench.program import run_program\n{program}sys.exit(run_program(body))"
        environment["CODE"] = code
        line = line.replace("PROGRAM", f'{sys.executable} -c "$CODE"')
    line = line.replace("WORKBENCH", f"{sys.executable} -m workbench.cli")
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        timeout=300,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_gives_its_number_to_no_file(closed):
    """A database that is opened as file 1 would receive what is printed."""
    body = "import os\ndef body():\n    file = os.open(os.devnull, os.O_RDONLY)\n    return file\n"
    assert shell(f"PROGRAM {closed}", body).returncode > 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_children_get_an_open_stream_too(closed, tmp_path):
    child = f"{sys.executable} -c 'import sys; print(1); print(2, file=sys.stderr); sys.exit(7)'"
    body = f"import subprocess\ndef body(): return subprocess.run({child!r}, shell=True).returncode\n"
    assert shell(f"PROGRAM {closed}", body).returncode == 7


def test_output_that_nobody_reads_ends_the_program_as_in_a_shell():
    done = shell("PROGRAM | head -1; exit ${PIPESTATUS[0]}", LINES)
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n", "")


def test_output_that_libraries_print_ends_the_same(tmp_path):
    body = (
        "from workbench.cli.terminal import Terminal\n"
        "def body():\n    for i in range(20000): Terminal(80).print(i, end='')\n    sys.stdout.flush()\n"
    )
    done = shell("PROGRAM | head -c 1; exit ${PIPESTATUS[0]}", body)
    assert (done.returncode, done.stdout, done.stderr) == (141, "0", "")


def test_a_full_disk_under_the_output_is_named():
    done = shell("PROGRAM > /dev/full", "def body(): print(1)\n")
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


TRAIN = "WORKBENCH train -p steps=2 -p batch_size=8 -p train_size=16 -p device=cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{TRAIN} >&-", 0),
        (f"{TRAIN} 2>&-", 0),
        (f"{TRAIN} >&- 2>&- <&-", 0),
        (f"{TRAIN} | head -1; exit ${{PIPESTATUS[0]}}", 141),
        (f"{TRAIN} 2>&1 | head -0; exit ${{PIPESTATUS[0]}}", 141),
        ("WORKBENCH train -p steps=x >&-", 2),
        ("WORKBENCH train -p steps=x 2>&-", 2),
    ],
)
def test_commands_run_or_end_quietly(root, line, code):
    done = shell(line)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "code"), [(">&-", 0), (">&- 2>&- <&-", 0), ("| head -1; exit ${PIPESTATUS[0]}", 141)]
)
def test_a_study_with_workers_runs_or_ends_quietly(root, closed, code):
    line = f"WORKBENCH study large_batch --quick --workers 2 {closed}"
    done = shell(line)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr
    from workbench.lab import Store

    statuses = {run.status for run in Store().search("studies", "quick")}
    assert statuses == {"FINISHED"} if code == 0 else statuses <= {"KILLED"}
