"""Files of a user's networks."""

from support.bad_input import cases

NET = "import torch\nfrom torch import nn\ndef net(num_classes=10, in_channels=3):\n    return "


def files():
    """Return user networks whose file or function cannot be used."""
    return {
        "bare.py": "",
        "nothing.py": "x = 3\n",
        "text.py": "def net(num_classes, in_channels): return 'a network'\n",
        "value.py": "net = 3\n",
        "arguments.py": "def net(a, b): pass\n",
        "no_syntax.py": "def net(:\n",
        "coded.py": b"# \xe9\ndef net(): pass\n",
        "null.py": b"def net(): pass\n\x00",
        "leaves.py": "import sys\nsys.exit('bye')\n",
        "generator.py": "raise GeneratorExit\n",
        "raises.py": "1 / 0\n",
        "missing_import.py": "import no_such_module_anywhere\n",
        "digits.py": f"x = {'9' * 6000}\n",
        "minus.py": f"x = {'-' * 100_000}1\n",
        "recursion.py": "def net(): return net()\n",
        "classes.py": f"{NET}nn.Sequential(nn.Flatten(), nn.LazyLinear(7))\n",
        "forward.py": f"{NET}nn.Linear(3, 3)\n",
        "memory.py": "import torch\ndef net(): return torch.empty(1 << 60)\n",
    }


TRAIN = "train -p steps=1 -p train_size=16 -p batch_size=8 -p model={bad}"
CASES = [
    *cases(
        "missing",
        ("check {bad}/nowhere.py:net", ["nowhere.py"]),
        ("check {bad}/nothing.py:net", ["nothing.py", "net"]),
        ("check {bad}/missing_import.py:net", ["missing_import.py", "no_such_module_anywhere"]),
        ("check no.such.module:net", ["no.such.module"]),
        ("check {bad}/nothing.py", ["{bad}/nothing.py:function"]),
    ),
    *cases("empty", ("check {bad}/bare.py:net", ["bare.py", "net"]), ("check {bad}/bare.py:", ["bare.py:"])),
    *cases(
        "wrong type",
        ("check {bad}/text.py:net", ["text.py"]),
        ("check {bad}/value.py:net", ["value.py", "net"]),
        ("check {bad}/file:net", ["{bad}/file"]),
        ("study own_network --quick -p model={bad}/text.py:net", ["text.py"]),
    ),
    *cases(
        "wrong value",
        ("check {bad}/leaves.py:net", ["leaves.py", "2"]),
        ("check {bad}/generator.py:net", ["generator.py", "1"]),
        ("check {bad}/raises.py:net", ["raises.py", "1"]),
        ("check {bad}/arguments.py:net", ["arguments.py"]),
        (f"{TRAIN}/leaves.py:net", ["leaves.py", "2"]),
        (f"{TRAIN}/classes.py:net", ["classes.py", "7", "10"]),
        (f"{TRAIN}/forward.py:net", ["forward.py", "28"]),
        ("study own_network --quick -p model={bad}/classes.py:net", ["classes.py", "7", "10"]),
    ),
    *cases(
        "too large",
        ("check {bad}/digits.py:net", ["digits.py", "1"]),
        ("check {bad}/memory.py:net", ["memory.py", "2"]),
    ),
    *cases(
        "too deep",
        ("check {bad}/minus.py:net", ["minus.py", "1"]),
        ("check {bad}/recursion.py:net", ["recursion.py", "1"]),
    ),
    *cases(
        "damaged",
        ("check {bad}/no_syntax.py:net", ["no_syntax.py", "1"]),
        ("check {bad}/coded.py:net", ["coded.py"]),
        ("check {bad}/null.py:net", ["null.py"]),
    ),
    *cases("unreadable", *((f"check {{bad}}/{name}.py:net", [f"{name}.py"]) for name in ("pipe", "folder", "loop"))),
]
