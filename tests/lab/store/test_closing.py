"""Tests of runs whose work breaks. Evidence: their status and tags in the store."""

import pytest

from workbench.lab import Store
from workbench.lab.store.closing import closing


@pytest.mark.parametrize(("error", "status"), [(ValueError("0.5"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_whose_work_breaks_is_closed_with_its_cause(root, error, status):
    store = Store()
    run_id = store.open_run("checks", "vgg", {}, {}, source="a test")
    with pytest.raises(type(error)), closing(store, run_id, "not checked: "):
        raise error
    run = store.get(run_id)
    assert (run.status, run.tags["outcome"]) == (status, "failed")
    assert run.tags["cause"] == f"not checked: {type(error).__name__}: {error}"


def test_the_error_of_the_work_is_raised_even_if_the_run_cannot_be_closed(root):
    with pytest.raises(ValueError, match="first"), closing(Store(), "0" * 32):
        raise ValueError("first")
