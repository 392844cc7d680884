"""The laboratory: store, jobs, studies, statistics, figures. Names load at first use."""

import importlib

_MODULES = {
    "Arm": "jobs.job",
    "Range": "studies.parameters",
    "Session": "studies.session",
    "Store": "store.client",
    "Study": "studies.spec",
    "open_session": "studies.session",
    "run_all": "jobs.run_all",
    "run_study": "studies.launcher",
    "search": "jobs.search",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'workbench.lab' has no attribute '{name}'")
    return getattr(importlib.import_module(f"workbench.lab.{_MODULES[name]}"), name)
