"""Tests that `normfree` keeps everything that a network does besides normalising.

Evidence: which activations run on one input, before and after. Exact equality with a network in which the activation is
a module of its own.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.foreign import SmallResNet
from torch import nn

from workbench.errors import WorkbenchError
from workbench.normfree import normfree
from workbench.normfree.operations import Operations

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class BNReLU(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class InPlace(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu_()


class Before(nn.BatchNorm2d):
    """Activates the norm's input."""

    def forward(self, x):
        return super().forward(torch.relu(x))


class Fused(nn.BatchNorm2d):
    """Calls the function instead of the parent's method, then modules, as in timm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        training = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        return self.act(self.drop(x))


class ActivatedTwice(nn.BatchNorm2d):
    """Uses one module twice, and a parameter of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act, self.slope = nn.ReLU(), nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x):
        return self.act(self.slope - self.act(super().forward(x)))


class ByHand(nn.BatchNorm2d):
    """Computes swish from its parts."""

    def forward(self, x):
        x = super().forward(x)
        return x * torch.sigmoid(x)


class NoisyInTraining(nn.BatchNorm2d):
    """Does more only in training mode."""

    def forward(self, x):
        x = super().forward(x)
        return F.leaky_relu(x) if self.training else x


def chain(norm, activation=None):
    """Return conv, norm, activation twice, pool and classifier, always with the same weights."""
    torch.manual_seed(0)
    layers = []
    for conv, channels in ((nn.Conv2d(3, 8, 3), 8), (nn.Conv2d(8, 16, 3), 16)):
        layers += [conv, norm(channels), *([activation()] if activation else [])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def trained(model):
    """Give the norms weights and biases like those of a trained network, always the same."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.5, generator)
            nn.init.normal_(module.bias, 0, 0.3, generator)
    return model


def ran(model, x=X):
    """Return the names of the activations that run."""
    with torch.no_grad(), Operations(model, [x]) as operations:
        model(x)
    return [name for name, _ in operations.ran if name not in ("convolution", "addmm") and "pool" not in name]


@pytest.mark.parametrize("norm", [BNReLU, InPlace, Fused])
@pytest.mark.parametrize("training", [True, False])
def test_an_activation_inside_a_norm_equals_one_behind_it(norm, training):
    inside, behind = (trained(chain(*layers)).train(training) for layers in ((norm,), (nn.BatchNorm2d, nn.ReLU)))
    result, expected = normfree(inside, X), normfree(behind, X)
    assert torch.equal(result.model(X), expected.model(X))
    assert ran(result.model) == ["relu", "relu"] and result.undone == []
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in result.model.modules())
    assert len(list(result.model.parameters())) == len(list(expected.model.parameters()))
    assert result.model[0].gain.tolist() == inside[1].weight.tolist()


@pytest.mark.parametrize("norm", [Before, ActivatedTwice, ByHand, NoisyInTraining])
def test_whatever_a_norm_does_besides_normalising_stays(norm):
    model = chain(norm).train()
    result = normfree(model, X)
    assert ran(result.model) == ran(model.eval().train())
    h = torch.randn(4, 8, 5, 5)
    rest, identity = result.model[1], copy.deepcopy(model[1]).eval()
    identity.reset_running_stats()
    identity.running_var.fill_(1 - identity.eps)  # in evaluation mode the norm then changes nothing
    if norm is not NoisyInTraining:
        torch.testing.assert_close(rest(h), identity(h))
    others = [name for name, _ in model[1].named_parameters() if name not in ("weight", "bias")]
    assert [name for name, _ in rest.named_parameters()] == others


def test_the_rest_of_a_norm_can_be_trained_copied_saved_and_exported(tmp_path):
    model = normfree(chain(ActivatedTwice), X).model
    model(X).sum().backward()
    assert model[1].slope.grad.abs() > 0
    again = normfree(chain(ActivatedTwice), X).model
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    for other in (again, copy.deepcopy(model), torch.export.export(model, (X,)).module()):
        torch.testing.assert_close(other(X), model(X))
    other = copy.deepcopy(model)
    other[1].slope.data.fill_(9.0)
    assert model[1].slope.item() == 0.5 and not torch.equal(other(X), model(X))
    assert model.double()(X.double()).dtype == torch.float64
    with pytest.raises(WorkbenchError, match="no BatchNorm"):
        normfree(model, X)


def test_a_norm_that_needs_more_than_its_input_keeps_all_arguments():
    class Conditional(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.embed = nn.Linear(4, channels)

        def forward(self, x, condition, *, sign=1.0):
            return super().forward(x) + sign * self.embed(condition)[:, :, None, None]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), Conditional(8), nn.Linear(8, 2)

        def forward(self, x, condition):
            return self.fc(F.relu(self.norm(self.conv(x), condition, sign=-1.0)).mean((2, 3)))

    condition = torch.randn(2, 4)
    new = normfree(Net(), (X, condition)).model
    expected = new.conv(X) - new.norm.embed(condition)[:, :, None, None]
    assert torch.equal(new(X, condition), new.fc(F.relu(expected).mean((2, 3))))


def test_an_activation_that_ends_a_branch_inside_the_norm_stays():
    class Block(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, 1, 1), norm

        def forward(self, x):
            return x + self.norm(self.conv(x))

    torch.manual_seed(0)
    stem, block, head = nn.Conv2d(3, 16, 3), Block(BNReLU(16)), nn.Conv2d(16, 2, 1)
    inside = nn.Sequential(stem, block, head)
    behind = copy.deepcopy(inside)
    behind[1].norm = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    result, expected = normfree(inside, X, skip_gain=0.5), normfree(behind, X, skip_gain=0.5)
    assert result.blocks.scale.tolist() == expected.blocks.scale.tolist() and len(result.blocks) == 1
    assert torch.equal(result.model(X), expected.model(X)) and ran(result.model) == ["relu"]


def test_an_activation_in_place_inside_a_norm_does_not_change_the_trunk():
    class Block(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.conv = norm, nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x):
            return x + self.conv(self.norm(x))

    torch.manual_seed(0)
    inside = nn.Sequential(nn.Conv2d(3, 8, 3), Block(InPlace(8)), nn.Conv2d(8, 2, 1))
    behind = copy.deepcopy(inside)
    behind[1].norm = BNReLU(8)
    assert torch.equal(normfree(inside, X, skip_gain=1.0).model(X), normfree(behind, X, skip_gain=1.0).model(X))


def test_an_activation_between_a_convolution_and_its_norm_keeps_the_norms_weight_out_of_the_convolution():
    class ConvReLU(nn.Conv2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    model = trained(nn.Sequential(ConvReLU(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)))
    result = normfree(model, X)
    assert torch.equal(result.model[0].gain, torch.ones(8))  # relu(gain * x) is another function than gain * relu(x)
    assert any("'1'" in s and "lost" in s for s in result.undone) and ran(result.model) == ["relu"]


def test_the_convolution_of_a_class_without_bias_is_reported():
    class Bare(nn.Module):
        def __init__(self, channels, out):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(out, channels, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight)

    model = trained(nn.Sequential(Bare(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    result = normfree(model, X)
    assert torch.equal(result.model[0].gain, model[1].weight)
    assert len(result.undone) == 1 and "'0'" in result.undone[0] and "bias" in result.undone[0]


def test_a_norm_without_bias_is_converted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    result = normfree(model, X)
    assert not result.model[0].bias.any() and result.model[0].bias.requires_grad and result.undone == []


# ---- refusals


class ChoosesByClass(nn.Module):
    """Activates after each module that is a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = F.hardswish(x)
        return x


class KeepsInAList(nn.Module):
    """Calls its norm through an ordinary list."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.layers = [self.conv, self.norm, self.out]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class OwnStatistics(nn.BatchNorm2d):
    def forward(self, x):
        var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
        return F.relu((x - mean) * torch.rsqrt(var + self.eps))


def with_patched_forward():
    model = chain(nn.BatchNorm2d)
    model[1].forward = lambda x: F.relu(nn.BatchNorm2d.forward(model[1], x))
    return model


def parametrized():
    model = chain(nn.BatchNorm2d, nn.ReLU)
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (ChoosesByClass, ["hardswish"]),
        (KeepsInAList, ["batch_norm"]),
        (lambda: chain(OwnStatistics), ["'1'", "OwnStatistics", "nn.BatchNorm2d"]),
        (with_patched_forward, ["'1'"]),
        (parametrized, ["'1'", "remove_parametrizations"]),
        (lambda: torch.jit.trace(chain(nn.BatchNorm2d).eval(), X), ["TorchScript"]),
    ],
)
def test_a_conversion_that_would_change_the_function_is_refused(build, words):
    with pytest.raises(WorkbenchError) as error:
        normfree(build(), X)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_hook_on_a_norm_stays():
    model = chain(nn.BatchNorm2d)
    model[1].register_forward_hook(lambda module, args, out: F.relu(out))
    assert ran(normfree(model, X).model) == ["relu"]


ACTIVATIONS = [
    *(nn.ReLU, nn.RReLU, nn.Hardtanh, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.Hardshrink, nn.LeakyReLU, nn.LogSigmoid, nn.Softplus, nn.Softshrink),
    *(nn.PReLU, nn.Softsign, nn.Tanhshrink, nn.Softmax2d),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_torch_is_noticed(activation):
    names = ran(nn.Sequential(nn.Conv2d(3, 8, 3), activation(), nn.MaxPool2d(2), nn.Dropout()))
    assert len(names) >= 1
    assert ran(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.AvgPool2d(2))) == []


def test_the_same_activations_run_in_a_residual_network():
    model = SmallResNet()
    assert ran(model) == ran(normfree(model, X).model) == ["relu"] * 9
