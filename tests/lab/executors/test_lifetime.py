"""Processes. Evidence: real processes that end, are killed or lose their parent."""

import signal
import subprocess
import sys
import time

import psutil

from workbench.lab.executors.lifetime import Family, is_alive, whoami


def sleeper(code="import time; time.sleep(60)"):
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_process_is_alive_until_it_ends():
    process = sleeper()
    identity = whoami(process.pid)
    assert is_alive(identity)
    process.kill()
    process.wait()
    assert not is_alive(identity)


def test_a_reused_pid_is_another_process_and_a_zombie_is_dead():
    process = sleeper()
    host, boot, pid, start = whoami(process.pid).rsplit("/", 3)
    assert not is_alive(f"{host}/{boot}/{pid}/{float(start) - 1000:.0f}")
    assert not is_alive(f"{host}/{int(boot) - 99999}/{pid}/{start}")
    identity = whoami(process.pid)
    process.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    assert not is_alive(identity)  # nobody has waited for it: a zombie
    process.wait()


def test_a_process_of_another_machine_counts_as_alive_and_an_unreadable_identity_as_dead():
    assert is_alive("elsewhere/1/1/1")
    assert not is_alive("")


def test_a_family_ends_completely_even_when_its_head_has_died():
    sleep = "import time; time.sleep(60)"
    process = sleeper(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}")
    family = Family(process.pid)
    deadline = time.monotonic() + 10
    while len(family._members) < 2 and time.monotonic() < deadline:
        family.look()
        time.sleep(0.05)
    child = next(m for m in family._members if m.pid != process.pid)
    process.kill()
    process.wait()
    assert child.is_running()
    family.end(grace=3)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
