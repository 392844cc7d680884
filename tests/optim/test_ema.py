"""Tests of EMA. Evidence: the published warm-up by hand, a closed form, states that round-trip."""

import tempfile
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from workbench.errors import WorkbenchError
from workbench.optim import EMA, suggest_clip


def scalar(value=0.0):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def test_the_average_starts_as_a_copy_and_warms_up_as_published():
    model = scalar(2.0)
    ema = EMA(model, decay=0.99999)
    assert ema.model.weight.item() == 2.0
    assert [ema.decay_at(t) for t in (0, 1, 8)] == [0.1, 2 / 11, 0.5]
    assert ema.decay_at(10_000_000) == 0.99999
    average = 2.0
    for t in range(3):
        with torch.no_grad():
            model.weight.fill_(float(t))
        ema.update()
        d = (1 + t) / (10 + t)
        average = d * average + (1 - d) * t
        assert ema.model.weight.item() == pytest.approx(average, rel=1e-12)


def test_a_constant_decay_forgets_geometrically():
    model = scalar(1.0)
    ema = EMA(model, decay=0.9, warmup=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    for _ in range(5):
        ema.update()
    assert ema.model.weight.item() == pytest.approx(0.9**5)


def test_batchnorm_statistics_are_averaged_and_counters_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.5, warmup=False)
    model(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
    ema.update()
    torch.testing.assert_close(ema.model.running_mean, model.running_mean / 2)
    assert ema.model.num_batches_tracked.item() == 1
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_a_loaded_state_continues_the_average():
    model = scalar(1.0)
    ema = EMA(model)
    ema.update()
    with torch.no_grad():
        model.weight.fill_(5.0)
    other = EMA(scalar(0.0))
    other.load_state_dict(ema.state_dict())
    other.source = model
    ema.update(), other.update()
    assert torch.equal(ema.model.weight, other.model.weight) and other.steps == 2


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(WorkbenchError, match=rf"`decay`.*got {decay}\."):
        EMA(scalar(), decay=decay)


# ---- networks that torch does not copy


def trained(build, average, steps=20):
    """Train a perceptron whose hidden layers come from `build`. Return the EMA."""
    torch.manual_seed(0)
    model = nn.Sequential(build(nn.Linear(6, 16)), nn.ReLU(), build(nn.Linear(16, 16)), nn.Linear(16, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    model(x)
    ema, optimizer = average(model), torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        ema.update()
    return ema, x


def pruned(linear):
    return prune.l1_unstructured(linear, "weight", amount=0.5)


def test_the_average_of_weight_norm_equals_that_of_its_parametrization():
    outputs = []
    for build in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        ema, x = trained(build, lambda model: EMA(model, 0.9, warmup=False))
        outputs.append(ema.model(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("build", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_average_of_spectral_norm_keeps_its_norm(build, decay):
    """Averaged singular vectors are shorter than 1, which makes the weights longer."""
    ema, x = trained(build, lambda model: EMA(model, decay, warmup=False), steps=100)
    ema.source.eval()(x), ema.model(x)
    ours, source = (torch.linalg.matrix_norm(model[2].weight, 2).item() for model in (ema.model, ema.source))
    assert ours <= 1.1 * source


def test_pruned_weights_stay_zero_in_the_average():
    ema, x = trained(pruned, lambda model: EMA(model, 0.9, warmup=False))
    ema.model(x)
    assert (ema.model[0].weight == 0).sum() == 48 and ema.model[0].weight_orig.all()


def test_a_network_that_keeps_its_activations_is_averaged():
    class Keeping(nn.Linear):
        def forward(self, x):
            self.last = {"outputs": [super().forward(x)]}
            return self.last["outputs"][0]

    model = Keeping(3, 2)
    out = model(torch.ones(1, 3))
    ema = EMA(model, 0.5, warmup=False)
    out.sum().backward()  # the graph of the model is intact
    with torch.no_grad():
        model.weight.zero_()
    before = ema.model.weight.clone()
    ema.update()
    assert torch.equal(ema.model.weight, before / 2) and not ema.model.last["outputs"][0].requires_grad


def test_a_network_that_cannot_be_copied_is_refused():
    model = scalar()
    model.lock = threading.Lock()
    with pytest.raises(WorkbenchError, match=r"Linear.*lock.*__deepcopy__"):
        EMA(model)


@pytest.mark.parametrize(("change", "words"), [("append", r"\b2\b.*\b4\b"), ("replace", r"0\.weight.*1, 1.*2, 1")])
def test_a_model_that_changed_after_ema_was_made_is_refused(change, words):
    model = nn.Sequential(nn.Linear(1, 1))
    ema = EMA(model)
    if change == "append":
        model.append(nn.Linear(1, 1))
    else:
        model[0] = nn.Linear(1, 2)
    with pytest.raises(WorkbenchError, match=words):
        ema.update()
    assert ema.steps == 0


# ---- fully_shard


@pytest.fixture
def mesh():
    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        torch.distributed.destroy_process_group()


def sharded(model, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)  # the root stays gathered after a forward pass without backward


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_the_average_of_a_sharded_model_equals_that_of_a_whole_one(mesh):
    outputs = []
    for shard in (False, True):
        model = network()
        ema = EMA(model, 0.9, warmup=False)
        if shard:
            sharded(model, mesh), sharded(ema.model, mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        x = torch.arange(24.0).view(4, 6).sin()
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                model(x), ema.model(x)  # evaluations gather weights
            ema.update()
        outputs.append(ema.model(x))
    assert torch.equal(*outputs)


def test_a_sharded_model_names_the_order_of_calls(mesh):
    model, late = network(), network()
    sharded(model, mesh)
    with pytest.raises(WorkbenchError, match=r"fully_shard.*before.*ema\.model"):
        EMA(model)
    ema = EMA(late)
    sharded(late, mesh)
    with pytest.raises(WorkbenchError, match=r"0\.weight.*fully_shard\(ema\.model\)"):
        ema.update()
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    with pytest.raises(WorkbenchError, match=r"suggest_clip before"):
        suggest_clip(model, [(x, y)], torch.optim.SGD(model.parameters(), lr=0.1), steps=8, progress=False)


@pytest.mark.parametrize("build", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned])
def test_suggest_clip_copies_computed_weights(build):
    torch.manual_seed(0)
    model = nn.Sequential(build(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3))
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    model(batches[0][0])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    suggestion = suggest_clip(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), steps=8, progress=False)
    assert suggestion.steps >= 8 and 0 < suggestion.low < suggestion.clip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
