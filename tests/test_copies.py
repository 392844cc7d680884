"""Tests of copies of networks that hold computed tensors. Evidence: equal outputs, separate weights, gradients."""

import pytest
import torch
from torch import nn

from workbench.copies import copied
from workbench.networks import build_network
from workbench.normfree import normfree
from workbench.normfree.standardized_convs import Standardized
from workbench.training.scoring import with_statistics_of
from workbench.weights import fold

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Conv2d):
    """Keeps its last outputs, as networks do that show attention maps."""

    def forward(self, x):
        out = super().forward(x)
        self.last = {"outputs": [out]}
        return out


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    conv = Keeps(3, 8, 3) if kind == "kept" else nn.Conv2d(3, 8, 3)
    wrap = {
        "weight_norm": nn.utils.weight_norm,
        "spectral_norm": nn.utils.spectral_norm,
        "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
        "parametrized spectral_norm": nn.utils.parametrizations.spectral_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "kept": lambda conv: conv,
    }[kind]
    return nn.Sequential(wrap(conv), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


KINDS = ["weight_norm", "spectral_norm", "parametrized weight_norm", "parametrized spectral_norm", "orthogonal", "kept"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_networks_with_computed_tensors_are_copied(kind):
    model = network(kind)
    model(X)  # computes the tensors, with their graph
    model.eval()
    copy, before = copied(model), model(X)
    assert torch.equal(copy(X), before)
    copy(X).sum().backward()
    assert all(p.grad is not None for p in copy.parameters()) and all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(1.0)
    assert torch.equal(model(X), before) and not torch.equal(copy(X), before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_with_computed_weights_is_converted_and_folded(kind):
    model = network(kind)
    model(X)
    result = normfree(model, X)
    assert isinstance(result.model[3], Standardized)
    if kind != "kept":  # a weight that is computed cannot be standardised, too
        rows = result.report.set_index("path")
        assert rows.loc["0", "was"] == rows.loc["0", "became"] and "weight" in rows.loc["0", "note"]
        assert any("'0'" in sentence for sentence in result.undone)
    result.model(X).sum().backward()
    assert all(p.grad is not None for p in result.model[0].parameters())
    plain = fold(result.model)
    torch.testing.assert_close(plain(X), result.model.eval()(X))
    assert with_statistics_of(model, [(X, None)])[1].num_batches_tracked == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_each_build_of_a_network_in_a_module_is_another_network(tmp_path, monkeypatch):
    (tmp_path / "held_nets.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    first, second = build_network("held_nets:net"), build_network("held_nets:net")
    assert first[0].weight_g is not second[0].weight_g and torch.equal(first(X), second(X))
