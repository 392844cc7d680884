"""The context of a notebook's process. Evidence: contexts pass through the environment, messages through a file."""

import os
from pathlib import Path

import pytest

from workbench.lab.executors import Choice, channel, context
from workbench.lab.executors.context import VARIABLE, Context, context_of
from workbench.lab.executors.lifetime import whoami


@pytest.mark.parametrize(
    "sent",
    [
        Context("a study | with a bar", "quick", "host/1/2/3"),
        Context("s", "full", whoami(), "0" * 32, Path("/a b/c|d.messages"), "ray:8,gpus=0.5", Path("/x/plan.jsonl")),
    ],
)
def test_a_context_passes_through_the_environment_unchanged(sent):
    assert context_of(sent.environment()) == sent


def test_a_process_without_a_launcher_has_no_context_and_sends_nothing(root, tmp_path):
    assert context.current() is None and not channel.has_listener()
    channel.send(kind="step")
    assert VARIABLE not in os.environ


def test_messages_arrive_in_order_and_an_unfinished_line_waits(root, tmp_path, monkeypatch):
    file = tmp_path / "messages"
    monkeypatch.setenv(*Context("s", "full", "l", channel=file).environment().popitem())
    reader = channel.Reader(file)
    assert reader.read() == []
    channel.send(kind="step", step=1)
    channel.send(kind="step", step=2)
    assert [message["step"] for message in reader.read()] == [1, 2]
    with open(file, "a") as stream:
        stream.write('{"kind": "st')
    assert reader.read() == []
    with open(file, "a") as stream:
        stream.write('ep", "step": 3}\n')
    assert [message["step"] for message in reader.read()] == [3] and reader.read() == []


def test_the_launchers_executor_overrides_the_environments(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_EXECUTOR", "processes:3")
    assert Choice.from_environment() == Choice("processes", 3)
    monkeypatch.setenv(*Context("s", "full", "l", executor="ray:2").environment().popitem())
    assert Choice.from_environment() == Choice("ray", 2)
