"""Everything with outside tools: the store, searches, notebooks, studies, statistics, figures. Imported piece by
piece, when asked for."""

import importlib

_HOME = {
    "Store": "store",
    "Study": "study",
    "run_study": "launcher",
    "search": "tuning",
    "Range": "parameters",
    "open_session": "session",
    "Session": "session",
    "run_all": "trainings",
    "Arm": "trainings",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'workbench.lab' has no attribute '{name}'")
    return getattr(importlib.import_module(f"workbench.lab.{_HOME[name]}"), name)
