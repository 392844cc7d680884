"""Study files and their notebooks."""

import json

from support.bad_input import cases

HEAD = "question: q\nnotebook: "


def _cell(source):
    return json.dumps({"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}]})


def files():
    """Return study files and notebooks by name. A study NAME_notebook.yaml has the notebook NAME.ipynb."""
    notebooks = {
        "bare": "",
        "no_cells": "{}",
        "list": "[]",
        "cell_kinds": '{"cells": [3, null]}',
        "syntax": _cell(["x: int = ("]),
        "kind": _cell(["x: print(1) = 3  # a"]),
        "nested": "[" * 100_000,
        "large": '{"cells": [], "metadata": "' + "x" * (65 << 20) + '"}',
        "bytes": bytes(range(128, 256)),
        "cut": _cell(["x: int = 3"])[:-5],
    }
    studies = {
        "bare_study.yaml": "",
        "listed_study.yaml": "- question\n",
        "tag_study.yaml": "question: !!python/name:os.system\nnotebook: large_batch.ipynb\n",
        "tour_study.yaml": f"{HEAD}large_batch.ipynb\ntour: perhaps\n",
        "minutes_study.yaml": f"{HEAD}large_batch.ipynb\nminutes: {{full: soon}}\n",
        "number_study.yaml": f"{HEAD}large_batch.ipynb\n3: x\n",
        "up_study.yaml": f"{HEAD}../../etc/passwd\n",
        "no_notebook_study.yaml": f"{HEAD}nowhere.ipynb\n",
        "deep_study.yaml": f"{HEAD}large_batch.ipynb\nparameters: " + "{a: " * 5000 + "}" * 5000 + "\n",
    }
    of_notebooks = {
        f"{name}_notebook.yaml": HEAD
        + "{bad}/"
        + f"{name}.ipynb\n"
        + ("parameters: {x: 1}\n" if name == "kind" else "")
        for name in (*notebooks, "pipe", "folder", "loop")
    }
    return {f"{name}.ipynb": text for name, text in notebooks.items()} | studies | of_notebooks


CASES = [
    *cases(
        "missing",
        ("study {bad}/nowhere.yaml", ["{bad}/nowhere.yaml"]),
        ("study {bad}/no_notebook_study.yaml", ["nowhere.ipynb"]),
        ("study {bad}/bare_classes", ["study", "{bad}/bare_classes"]),
        ("study large_batch --quick -p data={bad}/nowhere", ["data", "{bad}/nowhere"]),
    ),
    *cases(
        "empty",
        ("study {bad}/bare_study.yaml", ["bare_study.yaml"]),
        ("study {bad}/bare_notebook.yaml", ["bare.ipynb"]),
        ("study {bad}/no_cells_notebook.yaml", ["no_cells.ipynb", "cells"]),
        ("study latency -p clips=[]", ["clips", "[]", "[0.01, 0.16]"]),
        ("study -p clip=0.1", ["-p", "0"]),
    ),
    *cases(
        "wrong type",
        ("study {bad}/listed_study.yaml", ["listed_study.yaml", "question"]),
        ("study {bad}/list_notebook.yaml", ["list.ipynb"]),
        ("study {bad}/cell_kinds_notebook.yaml", ["cell_kinds.ipynb"]),
        ("study {bad}/number_study.yaml", ["number_study.yaml", "3", "question"]),
        ("study large_batch -p seeds=3", ["seeds", "3", "[0, 1]"]),
        ("study large_batch --quick --plan {bad}/empty", ["{bad}/empty", ".jsonl"]),
    ),
    *cases(
        "wrong value",
        ("study {bad}/tag_study.yaml", ["tag_study.yaml", "os.system"]),
        ("study {bad}/tour_study.yaml", ["tour_study.yaml", "tour"]),
        ("study {bad}/minutes_study.yaml", ["minutes_study.yaml", "minutes.full"]),
        ("study {bad}/up_study.yaml", ["notebook", "../../etc/passwd"]),
        ("study {bad}/kind_notebook.yaml", ["print(1)", "PositiveInt"]),
        ("study large_batch -p batch_sizes=[0]", ["batch_sizes", "[0]", "PositiveInt", "[64]"]),
        ("study large_batch -p weight_decay=-1", ["weight_decay", "-1", "NonNegativeFloat"]),
        ("study large_batch -p opponents=[BN+AGX]", ["opponents", "BN+AGX", "BN+AGC"]),
        ("study large_batch -p lr_scaling=liner", ["lr_scaling", "liner", "linear"]),
        ("study large_batch --dry-run -p clip=nan", ["clip", "nan", "0.01"]),
        ("study large_batch --dry-run -p lrs=[0.1,.inf]", ["lrs", "[0.1, inf]", "[0.4, 1.6, 6.4]"]),
        ("study own_network --dry-run -p model=nf_resnet5", ["nf_resnet5", "nf_resnet50"]),
        ("study large_batch --all", ["large_batch", "--all"]),
        ("study large_batch clip=0.1", ["clip=0.1", "-p"]),
    ),
    *cases("too large", ("study {bad}/large_notebook.yaml", ["large.ipynb"]), (f"study {'n' * 300}", ["n" * 300])),
    *cases(
        "too deep",
        ("study {bad}/nested_notebook.yaml", ["nested.ipynb"]),
        ("study {bad}/deep_study.yaml", ["deep_study.yaml"]),
    ),
    *cases(
        "damaged",
        ("study {bad}/binary.yaml", ["binary.yaml", "UTF-8"]),
        ("study {bad}/bytes_notebook.yaml", ["bytes.ipynb", "utf-8"]),
        ("study {bad}/syntax_notebook.yaml", ["syntax.ipynb", "'('"]),
        ("study {bad}/cut_notebook.yaml", ["cut.ipynb"]),
    ),
    *cases(
        "unreadable",
        *((f"study {{bad}}/{name}.yaml", [f"{{bad}}/{name}.yaml"]) for name in ("pipe", "folder", "loop")),
        *((f"study {{bad}}/{name}_notebook.yaml", [f"{name}.ipynb"]) for name in ("pipe", "folder", "loop")),
    ),
]
