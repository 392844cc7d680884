"""Activations: the authors' constants against exact integrals.

Evidence: algebra, an independent integral, the fact sheet.
"""

import math

import pytest
import torch
from scipy import integrate, stats

from workbench.errors import WorkbenchError
from workbench.models import create_model, list_models
from workbench.models.activations import ACTIVATIONS, activation_and_gamma, gamma, gamma_table

ELEMENTWISE = sorted(set(ACTIVATIONS) - {"glu", "log_softmax"})


def test_gamma_of_relu_is_the_papers_closed_form():
    assert gamma(torch.relu) == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), rel=1e-9)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_authors_constants_are_within_their_monte_carlo_error(name):
    g, table = ACTIVATIONS[name]
    assert table == pytest.approx(gamma(g), rel=2e-3)


# Exact values of 1 / std g(z), by quadrature in the authors' framework.
@pytest.mark.parametrize(
    ("name", "exact"),
    [("gelu", 1.70091656), ("silu", 1.78718722), ("tanh", 1.59253742), ("sigmoid", 4.80131337), ("selu", 1.0)],
)
def test_gamma_equals_the_known_exact_values(name, exact):
    assert gamma(ACTIVATIONS[name][0]) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("jump", [0.0, 0.3, -1.7])
def test_gamma_of_a_step_is_that_of_a_bernoulli_variable(jump):
    p = 1 - stats.norm.cdf(jump)
    assert gamma(lambda x: (x > jump).double()) == pytest.approx((p * (1 - p)) ** -0.5, rel=1e-6)


def test_gamma_of_a_smooth_function_equals_scipys_integral():
    def fn(x):
        return torch.sin(3 * x) + 0.1 * x**2

    def moment(k):
        return integrate.quad(lambda z: (math.sin(3 * z) + 0.1 * z * z) ** k * stats.norm.pdf(z), -12, 12, limit=200)[0]

    assert gamma(fn) == pytest.approx((moment(2) - moment(1) ** 2) ** -0.5, rel=1e-8)


def test_a_constant_has_no_gamma():
    with pytest.raises(WorkbenchError, match=r"`gamma`.*variance.*0\.0"):
        gamma(torch.zeros_like)


def test_an_unknown_name_gets_the_nearest_name():
    with pytest.raises(WorkbenchError, match=r"'gellu'.*'gelu'"):
        activation_and_gamma("gellu")


def test_gelu_is_the_tanh_form():
    x = torch.tensor(1.3, dtype=torch.float64)
    by_hand = 0.5 * 1.3 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.3 + 0.044715 * 1.3**3)))
    assert ACTIVATIONS["gelu"][0](x).item() == pytest.approx(by_hand, rel=1e-12)


def test_the_table_compares_every_activation_with_its_exact_constant(command):
    table = gamma_table().set_index("activation")
    assert list(table.index) == list(ACTIVATIONS)
    assert table.difference.drop("log_softmax").abs().max() < 2e-3
    pairs = torch.randn(400_000, 2, dtype=torch.float64)
    assert table.exact["glu"] == pytest.approx(torch.nn.functional.glu(pairs, 1).std().item() ** -1, rel=0.01)
    code, output, _ = command("models", "activations")
    assert code == 0 and "relu" in output and "+0.0" in output and "log_softmax" in output


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("activation", ["glu", torch.nn.GLU(1)])
def test_an_activation_that_halves_the_channels_runs_or_is_refused_at_construction(name, activation):
    def build():
        with torch.device("meta"):
            return create_model(name, 5, in_channels=3, activation=activation)

    if activation == "glu" and not name.startswith(("fixup", "timm")):
        assert build()(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 5)
    else:
        with pytest.raises(WorkbenchError, match=r"(?i)glu"):
            build()
