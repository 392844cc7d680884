"""Damaged text: studies, recipes, values of -p, notebooks, users' files, environment variables.

Evidence: every input is read or refused with a WorkbenchError, in seconds and within bounded memory.
"""

import json
import shutil

import pytest
import yaml
from support.checkout import CHECKOUT
from support.mutations import PLAIN_ODD, meet, mutated, odd_tree

from workbench import environment, user_code
from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice
from workbench.lab.executors.context import Context
from workbench.lab.studies.notebook_file import code_cells
from workbench.lab.studies.parameters import read_parameters
from workbench.lab.studies.recipes import parse_config, recipe_text
from workbench.lab.studies.spec import Study
from workbench.training import TrainConfig
from workbench.training.distributed import World
from workbench.user_errors import parsed

pytestmark = pytest.mark.slow
EXAMPLES = 400  # per boundary and kind of damage


@pytest.fixture
def studies(root):
    """Root with copies of the studies and notebooks, which may be changed."""
    for name in ("studies", "notebooks"):
        (root / name).unlink()
        shutil.copytree(CHECKOUT / name, root / name)
    return root


@pytest.mark.parametrize("name", ["large_batch", "own_network"])
def test_files_of_studies(studies, rng, name):
    file = studies / "studies" / f"{name}.yaml"
    whole = file.read_bytes()
    tree = yaml.safe_load(whole)
    cases = [mutated(whole, rng) for _ in range(EXAMPLES // 2)]
    cases += [yaml.safe_dump(odd_tree(tree, rng, PLAIN_ODD)).encode() for _ in range(EXAMPLES)]

    def load(content):
        file.write_bytes(content)
        Study.load(name)

    meet(cases, load)


def test_recipes(tmp_path, rng):
    file = tmp_path / "recipe.yaml"
    config = TrainConfig(steps=3, model_args={"skip_gain": 1.0, "stem": [1, 2]}, clip_exempt=["stem"])
    whole = recipe_text(config).encode()
    cases = [mutated(whole, rng) for _ in range(EXAMPLES)]
    cases += [yaml.safe_dump(odd_tree(config.to_dict(), rng, PLAIN_ODD)).encode() for _ in range(EXAMPLES)]

    def load(content):
        file.write_bytes(content)
        parse_config({}, str(file))

    meet(cases, load)


def test_values_of_parameters(root, rng):
    study = Study.load("large_batch")
    defaults = {name: knob.default for name, knob in study.knobs().items()}
    fields = TrainConfig(steps=1).to_dict()
    cases = []
    for _ in range(EXAMPLES):
        for of in (defaults, fields):
            name = rng.choice(sorted(of))
            odd = yaml.safe_dump(rng.choice(PLAIN_ODD), default_flow_style=True)
            text = rng.choice([odd, mutated(yaml.safe_dump(of[name]).encode(), rng).decode(errors="replace")])
            cases.append((of is fields, name, text))

    def set_value(case):
        is_field, name, text = case
        parse_config({"steps": "1", name: text}) if is_field else study.executions(quick=True, overrides={name: text})

    meet(cases, set_value)


def test_notebooks(studies, rng):
    file = studies / "notebooks" / "large_batch.ipynb"
    whole = file.read_bytes()
    tree = json.loads(whole)
    cell = next(cell for cell in tree["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cases = [mutated(whole, rng) for _ in range(EXAMPLES // 2)]
    cases += [json.dumps(odd_tree(tree, rng)).encode() for _ in range(EXAMPLES)]
    source = cell["source"]
    for _ in range(EXAMPLES):
        cell["source"] = mutated("".join(source).encode(), rng).decode(errors="replace")
        cases.append(json.dumps(tree).encode())

    def read(content):
        file.write_bytes(content)
        for parameter in read_parameters(file).values():
            parameter.check(parameter.default)
        code_cells(file)

    meet(cases, read)


def test_users_files(root, rng):
    file, other = root / "my_net.py", root / "parts.py"
    whole = (CHECKOUT / "studies" / "fast_resnet.py").read_bytes() + b"import parts\nfrom . import x\n"
    other.write_bytes(b"import my_net\na = b = 1\n")
    cases = [mutated(whole, rng) for _ in range(EXAMPLES)]
    cases += [
        b"(" * 5000,
        b"x = " + b"-" * 100_000 + b"1",
        b"x = " + b"a." * 100_000 + b"b",
        b"\xff\xfea\0",
        b"x=" + b"9" * 10_000,
    ]
    cases += [
        b"# coding: " + name + b"\nx = 1\n" for name in (b"nothing", b"utf-7", b"rot13", b"idna", b"utf-16", b"\xff")
    ]

    def read(content):
        file.write_bytes(content)
        for act in (parsed, lambda f: user_code.source_hash_of(f"{f}:build")):
            act(file)

    meet(cases, read)


@pytest.mark.parametrize(
    "name",
    [
        "WORKBENCH_EXECUTOR",
        "WORKBENCH_CONTEXT",
        "WORKBENCH_GPUS",
        "WORLD_SIZE",
        "RANK",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    ],
)
def test_environment_variables(root, rng, name):
    from workbench.pool.seats import seats, visible_gpus

    context = Context("mine", "full", "host/1/2/3", "r", root / "channel").environment()["WORKBENCH_CONTEXT"]
    wholes = [b"processes:4,gpus=0.5,threads=2", b"ray:8", b"3", b"-1", b"0,1", b"1e3", context.encode()]
    cases = [
        mutated(rng.choice(wholes), rng).replace(b"\0", b"").decode(errors="surrogateescape") for _ in range(EXAMPLES)
    ]
    cases += [json.dumps(odd_tree(json.loads(context), rng)) for _ in range(EXAMPLES)] + ["9" * 5000]

    def read(text):
        refused = None
        with environment.changed({name: text}):
            for act in (
                Choice.from_environment,
                lambda: Choice.of(None, None, None, None).count,
                lambda: seats(2, []),
                World.from_environment,
                visible_gpus,
            ):
                try:
                    act()
                except WorkbenchError as error:
                    refused = error
            if refused:
                raise refused

    meet(cases, read)
