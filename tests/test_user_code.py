"""Files of a user that fail: one sentence with file and line.

Evidence: files that fail when they are read, imported or called, each with the line that fails. Signals to this process
still end it.
"""

import signal
import sys

import pytest

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.networks import build_network, source_of
from workbench.weights import save_checkpoint

HEAD = "from torch import nn\n"
READ = {  # by the line that fails: files that are no Python
    "syntax": (2, b"x = 1\ndef build(:\n"),
    "nul": (2, b"x = 1\n\0\n"),
    "latin": (2, b"x = 1\ny = '\xe9'\n"),
    "utf16": (1, HEAD.encode("utf-16")),
    "coding": (1, b"# coding: nosuch\n"),
    "minus": (1, b"x = " + b"-" * 100_000 + b"1\n"),
    "plus": (1, b"x = " + b"+".join([b"1"] * 30_000) + b"\n"),
    "digits": (1, b"x = " + b"9" * 6000 + b"\n"),
}
IMPORTED = {
    "return_": (2, "x = 1\nreturn x\n"),
    "exit_": (2, "import sys\nsys.exit('text')\n"),
    "parser": (2, "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n"),
    "closed": (1, "raise GeneratorExit\n"),
    "interrupt": (2, "\nraise KeyboardInterrupt\n"),
    "recursion": (1, "def f(): f()\nf()\n"),
    "above": (1, "from ....a import b\n"),
    "far_above": (1, f"from {'.' * 60}a import b\n"),
    "group": (1, "raise BaseExceptionGroup('several', [KeyboardInterrupt()])\n"),
    "no_text": (3, "class E(Exception):\n    __str__ = None\nraise E\n"),
    "long_text": (1, "raise ValueError('x' * 1_000_000)\n"),
    "getattr_": (2, "def __getattr__(name):\n    raise RuntimeError(name)\n"),
}
CALLED = {
    "exit_": (3, HEAD + "def build():\n    raise SystemExit('text')\n"),
    "interrupt": (3, HEAD + "def build():\n    raise KeyboardInterrupt\n"),
    "closed": (3, HEAD + "def build():\n    raise GeneratorExit\n"),
    "recursion": (3, HEAD + "def build():\n    return build()\n"),
    "type_": (3, HEAD + "def build():\n    return 1 + 'a'\n"),
}


@pytest.fixture
def write(root, monkeypatch):
    """Return a function that writes a file of a user and returns the name of its function."""
    monkeypatch.chdir(root)

    def write(text, name="wrong_net.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{name}:build"

    yield write
    for name in [name for name in sys.modules if name.startswith("wrong_") or name == "helper"]:
        del sys.modules[name]


def refused(function, *args):
    with pytest.raises(WorkbenchError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize(("line", "text"), READ.values(), ids=READ)
@pytest.mark.parametrize("function", [source_of, build_network])
def test_a_file_that_is_not_python_is_named_with_its_line(write, function, line, text):
    message = refused(function, write(text))
    assert "wrong_net.py" in message and f"line {line}" in message


def test_a_file_that_another_file_imports_is_named(write):
    write(READ["syntax"][1], "helper.py")
    message = refused(source_of, write("import helper\n"))
    assert "helper.py" in message and "line 2" in message


@pytest.mark.parametrize(("line", "text"), IMPORTED.values(), ids=IMPORTED)
def test_whatever_a_file_raises_when_it_is_imported_becomes_a_sentence(write, line, text):
    name = write(text)
    assert len(source_of(name)) == 16  # nothing has run
    for _ in range(2):  # a module that is only half there must not stay
        message = refused(build_network, name)
        assert "wrong_net.py" in message and ("parser" in text or f"line {line}" in message)
    assert "wrong_net" not in sys.modules or "getattr" in text


@pytest.mark.parametrize(("line", "text"), CALLED.values(), ids=CALLED)
def test_whatever_a_function_raises_becomes_a_sentence(write, line, text):
    message = refused(build_network, write(text))
    assert "wrong_net.py" in message and f"line {line}" in message


@pytest.mark.parametrize("text", ["import sys\nsys.exit('text')\n", "raise GeneratorExit\n"])
def test_a_package_that_fails_is_named(write, text):
    write(text, "wrong_package/__init__.py")
    write("x = 1\n", "wrong_package/net.py")
    for function in (source_of, build_network):
        assert "wrong_package" in refused(function, "wrong_package.net:build")


@pytest.mark.parametrize("returned", ["3", "None", "nn.Linear", "[nn.Linear(1, 1)]"])
def test_a_function_must_return_a_network(write, returned):
    kind = type(eval(returned, {"nn": __import__("torch").nn})).__name__
    message = refused(build_network, write(f"{HEAD}def build(): return {returned}\n"))
    assert "build" in message and kind in message


def test_a_missing_function_gets_the_nearest_name(write):
    assert "'bild'" in refused(build_network, write("def bild(): pass\n"))


@pytest.mark.parametrize("text", ["build = min\n", "build = dict\n"])
def test_a_function_without_a_signature_is_called_without_sizes(write, text):
    assert "build" in refused(build_network, write(text), 10, 3)


@pytest.mark.parametrize("name", ["~no_such_user/net.py", "n" * 300 + ".py", "a\0b.py"])
def test_a_name_that_no_file_can_have_is_refused(root, name):
    assert name[:20].split("\0")[0] in refused(source_of, f"{name}:build")


@pytest.mark.parametrize("name", ["{a: [1]}\n", "a\nb.py", "a\nb.py:build", "a\nb:build"])
def test_a_name_with_a_line_break_is_refused_in_one_line(root, name):
    assert name.split()[0] in refused(build_network, name)


def test_a_declared_encoding_and_a_changed_search_path_are_allowed(write):
    built = "def build(): return nn.Flatten()\n"
    text = f"# coding: latin-1\nimport sys\n{HEAD}name = 'é'\nsys.path.clear()\n{built}".encode("latin-1")
    path = list(sys.path)
    try:
        assert type(build_network(write(text))).__name__ == "Flatten"
    finally:
        sys.path[:] = path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_an_import_is_no_fault_of_the_file(write, command, number, code, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    text = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(5)\n"
    assert command("check", write(text))[0] == code
    assert "wrong_net" not in sys.modules


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-p", "model={}", "-p", "steps=1", "-p", "device=cpu"),
        ("train", "-p", "model=normfree:{}", "-p", "steps=1", "-p", "device=cpu"),
        ("check", "{}"),
        ("evaluate", "{}", "--data", "{data}", "--weights", "weights.safetensors"),
        ("evaluate", "normfree:{}", "--data", "{data}", "--weights", "weights.safetensors"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("text", [READ["syntax"][1], IMPORTED["exit_"][1]], ids=["syntax", "exit"])
def test_every_command_that_takes_a_network_refuses_with_file_and_line(write, command, image_folder, arguments, text):
    save_checkpoint(create_model("nf_resnet_tiny"), "weights.safetensors")
    name = write(text)
    code, _, error = command(*(a.format(name, data=image_folder) for a in arguments))
    assert code == 2 and "wrong_net.py" in error and "line 2" in error and "Traceback" not in error
