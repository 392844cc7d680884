"""MLflow's pages in a real browser.

Evidence: a headless Chromium opens `workbench ui` on a store of a few trainings. The pages show the store's numbers.

Selenium drives the browser, because it can wait for a text; a page dumped after a fixed time may be incomplete. On
Debian: apt-get install chromium chromium-driver. Without them the test is skipped.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from support.checkout import CHECKOUT
from support.comparable import log
from support.ports import free_port

from workbench.lab import Store
from workbench.lab.compare.table import from_store
from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.lab.store.views import page
from workbench.lab.studies.notebook import execute

pytestmark = pytest.mark.slow
PATIENCE = 60  # seconds for a page
ACCURACIES = {"NF+AGC": (0.8125, 0.8375), "BN": (0.7025, 0.7225)}


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[dev]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1900,1300"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def filled(root, tmp_path):
    """A store with two arms of two seeds each, a failure, and a notebook's execution with its report."""
    store = Store()
    notebook = tmp_path / "n.ipynb"
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": "print('the report', 6 * 7)",
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    execution = store.open_notebook("large_batch", "large_batch.ipynb", {"clip": 0.04}, "full", "large_batch", {})
    for arm, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            clip = 0.04 if arm == "NF+AGC" else None
            log(store, accuracy, arm=arm, seed=seed, clip=clip, study="large_batch", owner=execution)
    log(store, 0.1, base_lr=25.6, clip=None, outcome="diverged", study="large_batch", owner=execution)
    execute(notebook, tmp_path / "run.ipynb", {})
    store.log_file(execution, tmp_path / "run.html", "notebook")
    effect = Effect("accuracy with AGC minus without", Interval(0.1125, 0.1, 0.125, 2))
    verdict = Verdict(True, effect, "AGC is ahead.", pd.DataFrame({"arm": ["NF+AGC"], "points": [11.25]}))
    store.describe(execution, str(verdict))
    store.set_tags(execution, verdict=verdict.headline, effect=str(verdict.effect))
    store.log_metrics(execution, verdict.metrics())
    store.log_figure(execution, plt.figure(), "empty")
    store.close(execution, "FINISHED")
    return store, execution


@pytest.fixture
def pages(filled):
    """The address of `workbench ui`, while it runs."""
    port = free_port()
    command = [sys.executable, "-m", "workbench.cli", "ui", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        for line in server.stdout:
            if line.startswith("The store is at"):
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def shown(browser, address, *wanted, within=None):
    """Open an address, wait until the page contains all wanted texts, and return its text."""
    browser.get("about:blank")  # otherwise another address of the same page would not load
    browser.get(address)
    deadline, text = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline:
        text = _text(browser, within)
        if all(piece in text for piece in wanted):
            return text
        time.sleep(0.3)
    missing = [piece for piece in wanted if piece not in text]
    raise AssertionError(f"{address} does not show {missing}, but:\n{text[:3000]}")


def _text(browser, frame):
    from selenium.common.exceptions import WebDriverException

    try:
        if frame is not None:
            browser.switch_to.frame(browser.find_element("tag name", frame))
        return browser.find_element("tag name", "body").text
    except WebDriverException:  # not loaded yet, or just replaced
        return ""
    finally:
        browser.switch_to.default_content()


def test_the_pages_show_the_stores_numbers(browser, pages, filled):
    store, execution = filled
    shown(
        browser,
        f"{pages}/#/experiments?workflowType=machine_learning",
        "trainings",
        "studies",
        "One run is one training.",
    )

    trainings = store.experiment_id("trainings", "full")
    first = shown(browser, page(pages, trainings), "Views:", "nf_resnet_tiny B64 lr0.4 c0.04 s1")
    assert "leaderboard · batch-size · search · failures · seeds" in first
    link = browser.find_element("link text", "failures").get_attribute("href")
    shown(browser, link, "1 matching run", "nf_resnet_tiny B64 lr6.4 s0", "failed_at_step")

    # The mean of 0.8125 and 0.8375, and of 0.7025 and 0.7225; the three groups by their names.
    grouped = shown(
        browser, page(pages, trainings, "seeds"), "0.825", "0.7125", "Group: NF+AG", "Group: BN", "5 matching runs"
    )
    assert grouped.index("0.825") < grouped.index("0.7125")

    studies = store.experiment_id("studies", "full")
    shown(browser, page(pages, studies, "verdicts"), "large_batch", "effect_low", "0.1125")
    run = f"{pages}/#/experiments/{studies}/runs/{execution}"
    shown(
        browser,
        f"{run}?workflowType=machine_learning",
        "Holds. AGC is ahead.",
        "accuracy with AGC minus without = 0.113",
    )
    shown(browser, f"{run}/artifacts/notebook/run.html", "the report 42", within="iframe")

    comparison = from_store(store, ["large_batch"], tags={"arm": "NF+AGC"})
    port = int(pages.rpartition(":")[2])
    address = store.compare_url(list(comparison.rows.run_id), "trainings", "full", port)
    comparison_page = shown(browser, address, "Comparing 2 Runs from 1 Experiment", "0.813", "0.838")
    assert "nf_resnet_tiny B64 lr0.4 c0.04 s0" in comparison_page
    assert re.search(r"Metrics:\s+val_acc", comparison_page)  # what the page draws first
