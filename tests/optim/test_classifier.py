"""Tests of the search for the classifier. Evidence: networks whose output is known by construction."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model, list_models
from workbench.optim import param_groups
from workbench.optim.classifier import classifier_weights


def exempt(model, **arguments):
    """The names of what the groups do not clip."""
    return [name for g in param_groups(model, **arguments) if g["clip"] is None for name in g["names"]]


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        return torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))[:, :, None, None]


class Gated(nn.Module):
    """A classifier of another type and name, and a gate that is registered last and has the name of a head."""

    def __init__(self, head="classifier", gate="se"):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.add_module(head, nn.Conv2d(8, 5, 1))
        self.add_module(gate, Gate(8))
        self.parts = [head, gate]

    def forward(self, x):
        head, gate = (getattr(self, name) for name in self.parts)
        h = self.stem(x)
        return head(h * gate(h)).mean((2, 3))


class Branching(Gated):
    """A forward pass that looks at sizes, which cannot be followed without an input."""

    def forward(self, x):
        return super().forward(x if x.shape[1] == 3 else x[:, :3])


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(11, 6), nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


class FunctionalLanguage(Language):
    def forward(self, x):
        return self.rnn(self.embed(x))[0] @ self.embed.weight.T


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.head_dist = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        h = F.relu(self.body(x))
        both = self.head(h), self.head_dist(h)
        return both if self.training else (both[0] + both[1]) / 2


class WithFeatures(TwoHeads):
    """Features are an output, too. An optional argument and an attribute must not disturb."""

    def forward(self, x, mask=None):
        self.seen = h = F.relu(self.body(x))
        h = h if mask is None else h * mask
        return {"features": h, "logits": self.head(h)}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


class Stubborn(nn.Module):
    """Depends on values, so not even an example helps."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.body(x) if x.sum() > 0 else x)


class Attending(nn.Module):
    """A product of two activations, a size that the forward pass reads, and a weight without a layer."""

    def __init__(self):
        super().__init__()
        self.key, self.value, self.proj = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        _, d = x.shape
        attention = (self.key(x) @ x.T / d**0.5).softmax(-1)
        return (attention @ self.value(x)) @ self.proj * self.value(x).size(0)


class Computing(nn.Module):
    """Returns its loss, too, as the networks of other libraries do."""

    def __init__(self):
        super().__init__()
        self.body, self.score = nn.LSTM(4, 4), nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.score(self.body(x)[0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return loss, logits


class Lightning(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


def normed(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older functions are deprecated, but in use
        return nn.Sequential(nn.Linear(3, 3), function(nn.Linear(3, 2)))


CASES = {
    "a convolution named classifier": (Gated(), ["classifier.weight"]),
    "a head without a usual name, a gate named fc": (Gated("out", "fc"), ["out.weight"]),
    "tied to the embedding": (Language(), ["embed.weight"]),
    "the embedding itself": (FunctionalLanguage(), ["embed.weight"]),
    "two heads": (TwoHeads(), ["head.weight", "head_dist.weight"]),
    "the mean of two heads": (TwoHeads().eval(), ["head.weight", "head_dist.weight"]),
    "features next to logits": (WithFeatures(), ["head.weight"]),
    "a weight without a layer": (Attending(), ["proj"]),
    "a loss next to logits": (Computing(), ["score.weight"]),
    "one logit": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), ["2.weight"]),
    "a pool after a convolution": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))),
        ["1.0.weight"],
    ),
    "one layer": (nn.Conv2d(1, 2, 3), ["weight"]),
    "weight norm": (normed(nn.utils.parametrizations.weight_norm), ["1.parametrizations.weight.original1"]),
    "older weight norm": (normed(nn.utils.weight_norm), ["1.weight_v"]),
    "older spectral norm": (normed(nn.utils.spectral_norm), ["1.weight_orig"]),
    "compiled": (torch.compile(TwoHeads()), ["head.weight", "head_dist.weight"]),
    "compiled inside": (nn.Sequential(torch.compile(nn.Linear(3, 3)), torch.compile(nn.Linear(3, 2))), ["1.weight"]),
    "data parallel": (nn.DataParallel(Gated()), ["classifier.weight"]),
    "Lightning": (Lightning(Gated()), ["classifier.weight"]),
    "no weights": (nn.LayerNorm(3), []),
    "only gains": (nn.LayerNorm([3, 4, 4]), []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_produces_the_output_is_exempt_whatever_its_name(case):
    model, names = CASES[case]
    assert sorted(exempt(model)) == names


@pytest.mark.parametrize(
    "name", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0", "resnet50", "fixup_resnet50", "nfnet_micro"]
)
def test_the_classifier_of_our_networks_is_their_linear_layer(name):
    assert name in list_models()
    with torch.device("meta"):
        assert classifier_weights(create_model(name, 10)) == ["linear.weight"]
        assert classifier_weights(create_model(name, 0)) == []  # not the last gate


def test_an_example_decides_where_the_forward_pass_depends_on_sizes():
    model = Branching("out", "fc")
    with pytest.raises(WorkbenchError, match=r"Branching.*`classifier`.*`example`"):
        param_groups(model)
    x, before = torch.randn(2, 3, 8, 8), copy.deepcopy(model.state_dict())
    for example in (x, (x,), {"x": x}):
        assert exempt(model, example=example) == ["out.weight"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_following_the_output_does_not_run_or_change_the_network():
    model, calls = WithFeatures(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.head.register_forward_hook(lambda *_: calls.append(1))
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    assert exempt(model) == ["head.weight"]
    assert not calls and {name: dict(vars(m)) for name, m in model.named_modules()} == before


def test_an_example_reaches_no_attribute_and_no_buffer():
    class Remembers(Branching):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    model = nn.Sequential(nn.BatchNorm2d(3), Remembers("out", "fc"))
    assert exempt(model, example=torch.randn(2, 3, 8, 8)) == ["1.out.weight"]
    assert not hasattr(model[1], "seen") and model[0].num_batches_tracked == 0


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but in use
        return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "model", [Residual(), Stubborn(), scripted()], ids=["a residual sum", "a choice by value", "TorchScript"]
)
def test_a_network_for_which_nothing_decides_is_refused_with_the_cure(model):
    for example in (None, torch.randn(2, 4)):
        with pytest.raises(WorkbenchError) as caught:
            param_groups(model, example=example)
        assert all(word in str(caught.value) for word in (type(model).__name__, "`classifier`", "`example`"))


@pytest.mark.parametrize(
    ("classifier", "names"),
    [("second", ["second.weight"]), (["first.weight", "se*"], ["first.weight", "second.weight"]), ((), [])],
)
def test_the_caller_can_name_the_classifier(classifier, names):
    assert sorted(exempt(Residual(), classifier=classifier)) == names


def test_a_classifier_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(WorkbenchError, match=r"'secondary'.*'second"):
        param_groups(Residual(), classifier="secondary")


def test_a_name_decides_only_for_a_last_layer_that_alone_has_the_name_of_a_head():
    class Sized(nn.Module):
        def forward(self, x):
            return x + 1 if x.shape[0] else x

    def network(**layers):
        model = Sized()
        for name, layer in layers.items():
            model.add_module(name, layer)
        return model

    linear = lambda: nn.Linear(4, 4)
    assert exempt(network(body=linear(), fc=linear())) == ["fc.weight"]
    assert exempt(network(body=linear(), classifier=nn.Sequential(linear(), linear()))) == ["classifier.1.weight"]
    for layers in (
        {"fc": linear(), "body": linear()},
        {"body": linear(), "head": linear(), "head_dist": linear()},
        {"body": linear(), "out": linear(), "fc": Gate(4)},
        {"body": linear(), "out": linear(), "fc": nn.Sequential(linear(), linear(), nn.Sigmoid())},
    ):
        with pytest.raises(WorkbenchError):
            param_groups(network(**layers))
