"""Preconditions. Evidence: what is measured, by hand, on both sides of each bound."""

import math

import pandas as pd
import pytest

from workbench.lab.statistics import preconditions


@pytest.mark.parametrize(("accuracies", "met"), [((0.84, 0.87), True), ((0.84, 0.85), False)])
def test_batchnorm_is_trained_out_from_85_percent_on_average(accuracies, met):
    table = pd.DataFrame({"arm": ["BN", "BN", "NF"], "val_acc": [*accuracies, 0.1]})
    assert preconditions.batchnorm_trained_out("", table).met is met


@pytest.mark.parametrize(("train_loss", "met"), [(0.7, True), (0.71, False)])
def test_a_net_overfits_from_a_gap_of_three_tenths(train_loss, met):
    table = pd.DataFrame({"arm": ["plain"], "train_loss": [train_loss], "val_loss": [1.0]})
    assert preconditions.overfits("", table, "plain").met is met


@pytest.mark.parametrize(("ends", "met"), [("cd", True), ("dd", False), ("cc", False)])
def test_some_trainings_fail_and_some_do_not(ends, met):
    outcome = [{"c": "complete", "d": "diverged"}[end] for end in ends]
    table = pd.DataFrame({"arm": ["NF", "NF+AGC"], "outcome": outcome, "val_loss": 1.0, "data": "cifar10"})
    other = table.assign(arm="BN", outcome="complete")
    assert preconditions.some_fail("", pd.concat([table, other]), "NF", "NF+AGC").met is met


def test_a_training_fails_at_the_lowest_line():
    table = pd.DataFrame({"arm": ["NF", "NF+AGC"], "outcome": "complete", "val_loss": [0.86 * math.log(10), 1.0],
                          "data": "cifar10"})  # fmt: skip
    assert preconditions.some_fail("", table, "NF", "NF+AGC").measured == "1 of 2 fail"
    assert preconditions.none_fails("", table, "NF").met


@pytest.mark.parametrize(("second", "met"), [(0.49, True), (0.496, False)])
def test_the_chosen_rate_leads_by_half_a_point(second, met):
    table = pd.DataFrame({"arm": "NF", "lr": [0.1, 0.2, 0.4], "val_acc": [0.3, 0.5, second]})
    assert preconditions.rate_separated("", table, "NF").met is met
