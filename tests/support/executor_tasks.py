"""Tasks for the executors' tests. Workers import them by name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def double(arguments, send, stop):
    return 2 * arguments


def ask(arguments, send, stop):
    return [send(word) for word in arguments]


def fail(arguments, send, stop):
    raise ValueError(arguments)


def environment(arguments, send, stop):
    import torch

    return {name: os.environ.get(name) for name in arguments} | {"pid": os.getpid(), "threads": torch.get_num_threads()}


def occupy(arguments, send, stop):
    """Send the assigned GPU at the beginning and at the end."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    send(("begins", gpu))
    time.sleep(arguments)
    send(("ends", gpu))
    return gpu


def die(arguments, send, stop):
    """Die by SIGKILL in the first `times` attempts, which files count. Then return the number of attempts."""
    folder, times = arguments
    tries = len(list(Path(folder).iterdir()))
    if tries < times:
        (Path(folder) / str(tries)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


def until_stopped(arguments, send, stop):
    """Work until stopped, then save."""
    send(os.getpid())
    while not stop():
        time.sleep(0.05)
    Path(arguments).touch()
    raise KeyboardInterrupt


def pid(arguments, send, stop):
    return os.getpid()


def with_child(arguments, send, stop):
    """Start a sleeping process, send both process ids, and work until stopped."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    send((os.getpid(), child.pid))
    while not stop():
        time.sleep(0.05)
