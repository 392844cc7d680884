"""Environment variables."""

from support.bad_input import Case

SMALL = "train -p steps=2 -p batch_size=8 -p train_size=16 -p device=cpu"
STUDY = "study large_batch --quick"
URI, CONTEXT, SECONDS = "MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT", "WORKBENCH_CHECKPOINT_SECONDS"


def _case(kind, name, value, *more, line=SMALL, names=None):
    return Case(kind, line, names or [name, value, *more], {name: value})


def _path(kind, name, value, line):
    """Make a case of a path, whose message names it. The variable need not be named."""
    return Case(kind, line, [value], {name: value})


CASES = [
    _case("missing", "WORKBENCH_ROOT", "{bad}/nowhere"),
    _case("missing", URI, "http://no.such.host.invalid:5000"),
    _case("missing", URI, "postgresql://127.0.0.1:9/x", names=["postgresql://127.0.0.1:9/x"]),
    _case("missing", URI, "http://me:secret@127.0.0.1:9", names=[URI, "127.0.0.1:9"]),
    _path("missing", "WORKBENCH_DATA", "~nobody-here/x", "train -p data=cifar10 -p steps=1"),
    _path("missing", "XDG_CACHE_HOME", "~nobody-here/x", "models download nfnet_f0"),
    _case("missing", "WORKBENCH_ROOT", "~nobody-here/x"),
    _case("empty", SECONDS, " "),
    _case("empty", "WORLD_SIZE", " "),
    _case("empty", URI, "http://"),
    _case("wrong type", SECONDS, "soon"),
    _case("wrong type", "WORLD_SIZE", "two"),
    _case("wrong type", CONTEXT, "[1]"),
    _case("wrong type", "WORKBENCH_EXECUTOR", "processes:many", line=STUDY),
    _case("wrong type", "WORKBENCH_GPUS", "\u00b2", line=STUDY),
    _case("wrong type", URI, "nonsense://x", names=["nonsense://x"]),
    _case("wrong value", SECONDS, "nan"),
    _case("wrong value", SECONDS, "-1"),
    _case("wrong value", "WORLD_SIZE", "0"),
    _case("wrong value", "RANK", "3", "WORLD_SIZE"),
    _case("wrong value", "LOCAL_RANK", "-1"),
    _case("wrong value", CONTEXT, '{"colour": 3}', names=[CONTEXT]),
    _case("wrong value", "WORKBENCH_EXECUTOR", "rayy", line=STUDY, names=["rayy", "ray"]),
    _case("wrong value", "WORKBENCH_EXECUTOR", "processes:2,gpus=nan", line=STUDY, names=["processes:2,gpus=nan"]),
    _case("wrong value", "WORKBENCH_GPUS", "-1", line=STUDY),
    _case("too large", "WORKBENCH_DIVERGED_GIB", "1e999"),
    _case("too large", "WORKBENCH_DIVERGED_GIB", "inf"),
    _case("too large", "WORLD_SIZE", "9" * 5000, names=["WORLD_SIZE"]),
    _case("too large", "WORKBENCH_ROOT", "/" + "n" * 5000, names=["WORKBENCH_ROOT"]),
    _case("too deep", CONTEXT, '{"study": ' * 5000, names=[CONTEXT]),
    _case("damaged", CONTEXT, "{broken"),
    _case("unreadable", "WORKBENCH_ROOT", "{bad}/file"),
    _case("unreadable", "WORKBENCH_ROOT", "{bad}/loop.py"),
    _case("unreadable", URI, "{bad}/empty", names=["{bad}/empty"]),
    _case("unreadable", URI, "sqlite:///{bad}/file/x.db"),
    _case("unreadable", URI, "sqlite:///{bad}/binary", names=["{bad}/binary"]),
    _path("unreadable", "WORKBENCH_CACHE", "{bad}/file", "models download nfnet_f0"),
]
