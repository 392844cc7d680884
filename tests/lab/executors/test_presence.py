"""Liveness by locks. Evidence: processes that end in every way, under the names of other machines and process ids."""

import os
import subprocess
import sys

import pytest

from workbench.lab import Store
from workbench.lab.executors import presence
from workbench.lab.executors.lifetime import announced, is_alive, whoami

WRITER = """
import platform, sys, time
platform.node = lambda: {host!r}
from workbench.lab.executors import lifetime
if {pid!r}:
    lifetime.whoami = lambda pid=None: "/".join([{host!r}, *{pid!r}.split("/")[1:]])
from workbench.lab import Store
print(Store().open_notebook("small", "small.ipynb", {{}}, "full", "small", {{}}), flush=True)
{last}
"""


def writer(host, pid="", last="time.sleep(60)"):
    """Start a process that opens a run under this host name, and return it with the run's id."""
    code = WRITER.format(host=host, pid=pid, last=last)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("pid", ["", "the pid of this process"])
def test_a_run_of_another_container_lives_until_its_process_is_killed(root, pid):
    process, run_id = writer("another-container", whoami() if pid else "")
    store = Store()
    assert store.orphans() == {}
    assert store.is_written(store.get(run_id))
    process.kill()
    process.wait()
    assert list(store.orphans()) == [run_id]


def test_a_run_of_a_container_with_this_name_and_a_living_pid_is_dead_without_its_process(root):
    parent = whoami(os.getppid())
    process, run_id = writer(parent.split("/")[0], parent)
    process.kill()
    process.wait()
    assert is_alive(whoami(os.getppid())) is False  # its lock is free, whoever has the pid
    assert list(Store().orphans()) == [run_id]


def test_a_process_of_another_machine_without_a_lock_counts_as_dead_only_where_all_have_locks(root):
    assert is_alive("elsewhere/1/1/1") and not is_alive("elsewhere/1/1/1", shared=True)


def test_the_lock_says_what_it_is_for_and_goes_with_its_process(root):
    process, _ = writer("another-container", last="")
    process.wait()
    assert not list(presence.folder().glob("*.lock"))
    identity = announced()
    (file,) = presence.folder().glob("*.lock")
    assert identity in file.read_text() and presence.is_present(identity)


def test_the_locks_of_killed_processes_are_removed(root):
    process, _ = writer("another-container")
    process.kill()
    process.wait()
    announced()
    assert len(list(presence.folder().glob("*.lock"))) == 1


def test_a_fork_keeps_no_lock_of_its_parent(root):
    process, run_id = writer("another-container", last="import os; time.sleep(60 if os.fork() else 8)")
    store = Store()
    process.kill()
    process.wait()
    assert list(store.orphans()) == [run_id]
