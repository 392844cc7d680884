"""Folding and exporting networks, and the ways to run them.

Evidence: folded, exported and ONNX networks compute what the network computes, at sizes of other parity than the traced
one. onnxruntime runs the ONNX files. Full-size networks and inductor are in the slow set.
"""

import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.layers import ScaledStdConv2d
from workbench.weights.export import TRACED_AT, export_onnx, export_program, fold

FOLDED = {
    "nf_resnet_tiny": {},
    "nf_resnet26_cifar": {"se_ratio": 0.25},
    "nfnet_micro": {},
    "nf_regnet_b0": {},
    "timm_nf_regnet_b1": {},
    "timm_nf_resnet50": {},
    "skipinit_resnet50": {"width": 1},
    "fixup_resnet50": {"width": 1},
    "resnet_tiny": {},
}


def moved(model):
    """Leave the starting values, which make branches and some classifiers zero, and switch to evaluation mode."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p) if p.ndim == 1 else 0.05 * torch.randn_like(p))
    return model.eval()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_network_is_exact_and_has_plain_convolutions_only(name):
    model = moved(create_model(name, 7, **FOLDED[name]).double())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold(model)
    for size in ((48, 64), (45, 51)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        assert relative(folded(x), model(x)) < 1e-12
        assert relative(folded.forward_features(x), model.forward_features(x)) < 1e-12
    kinds = {type(m) for m in folded.modules() if "Conv" in type(m).__name__}
    assert kinds <= {nn.Conv2d, nn.Conv1d}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model itself stays


def test_alpha_and_the_skip_gain_are_folded_where_no_gate_follows():
    gated, plain = fold(moved(create_model("nfnet_micro", 3))), fold(moved(create_model("nf_resnet_tiny", 3)))
    assert all(b.alpha == 1.0 and b.skip_gain.item() == 1.0 for b in plain.blocks)
    assert all(b.alpha == 0.2 and b.skip_gain.item() != 1.0 for b in gated.blocks)


def check_exports(model, tmp_path, channels=3):
    """Compare torch.export and onnxruntime with the network, as it is and folded, at even and odd sizes."""
    import onnxruntime

    for net in (model, fold(model)):
        program = export_program(net).module()
        session = onnxruntime.InferenceSession(str(export_onnx(net, tmp_path / "x.onnx")))
        assert [d for d in session.get_inputs()[0].shape[2:] if isinstance(d, int)] == []
        for size in ((1, 48, 64), (3, 45, 51)):
            assert size[1:] != TRACED_AT
            x = torch.randn(size[0], channels, *size[1:])
            wanted = net(x)
            assert relative(program(x), wanted) < 1e-5
            (logits,) = session.run(["logits"], {"images": x.numpy()})
            assert relative(torch.from_numpy(logits), wanted) < 1e-5


def test_a_small_network_is_exported_in_every_format(tmp_path):
    check_exports(moved(create_model("nf_resnet_tiny", 5, in_channels=1)), tmp_path, channels=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["nfnet_f0", "nf_resnet50", "nf_regnet_b0", "timm_nfnet_l0", "resnet50", "fixup_resnet50", "skipinit_resnet50"],
)
def test_full_size_networks_are_exported_in_every_format(name, tmp_path):
    check_exports(moved(create_model(name, 11)), tmp_path)


def test_missing_export_packages_are_named_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r"onnx and onnxscript.*pip install 'normfree-workbench\[export\]'"):
        export_onnx(create_model("nf_resnet_tiny", 3), tmp_path / "x.onnx")


def test_foreign_networks_are_refused():
    with pytest.raises(WorkbenchError, match=r"Linear.*`example`"):
        export_program(nn.Linear(2, 2))


# ---- the ways a network is run


NETS = {"nf_resnet_tiny": {}, "nfnet_micro": {}, "resnet_tiny": {}, "nf_resnet26_cifar": {"se_ratio": 0.25}}


@pytest.mark.parametrize("name", [pytest.param("nfnet_micro", marks=pytest.mark.slow), "resnet_tiny"])
def test_one_graph_for_compile_in_training_and_evaluation(name):
    model = moved(create_model(name, 5, stochastic_depth=0.0, **NETS[name]))
    for training in (False, True):
        model.train(training)
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
        for size in (32, 35):
            x = torch.randn(2, 3, size, size)
            torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf_resnet_tiny", "nfnet_micro"])
def test_inductor_computes_the_same_forward_and_backward(name):
    model = moved(create_model(name, 5, stochastic_depth=0.0, dropout=0.0)).train()
    x = torch.randn(4, 3, 32, 32)
    model(x).square().sum().backward()
    wanted = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    compiled(x).square().sum().backward()
    assert max(relative(p.grad, wanted[k]) for k, p in model.named_parameters()) < 1e-4
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NETS)
def test_channels_last_is_only_a_layout(name):
    model = moved(create_model(name, 5, **NETS[name]).double())
    x = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    wanted = model(x)
    model = model.to(memory_format=torch.channels_last)
    seen = []
    model.blocks[0].register_forward_hook(lambda _m, _i, out: seen.append(out))
    assert relative(model(x.contiguous(memory_format=torch.channels_last)), wanted) < 1e-12
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NETS)
def test_autocast_computes_in_half_precision_and_standardises_in_float32(name, dtype):
    model = moved(create_model(name, 5, **NETS[name])).train()
    x = torch.randn(4, 3, 32, 32)
    convolved, standardised = [], []
    convs = [m for m in model.modules() if hasattr(m, "fan_in")]
    hooks = [conv.register_forward_hook(lambda _m, _i, out: convolved.append(out.dtype)) for conv in convs]
    original = ScaledStdConv2d.standardized_weight

    def watched(self):
        weight = original(self)
        standardised.append(weight.dtype)
        return weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScaledStdConv2d, "standardized_weight", watched)
        with torch.autocast("cpu", dtype):
            logits = model(x)
        logits.float().square().mean().backward()
    for hook in hooks:
        hook.remove()
    assert set(convolved) == {dtype} and set(standardised) <= {torch.float32}
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )
    assert relative(logits.float(), model(x)) < 0.1


def test_a_half_precision_network_standardises_in_float32():
    conv = ScaledStdConv2d(64, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(1e-3)  # its variance is 1e-9, which float16 cannot store
    exact = conv.standardized_weight()
    half = conv.half().standardized_weight()
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=2e-3, atol=2e-4)


def test_feature_maps_features_and_a_new_classifier_have_the_documented_shapes():
    model = moved(create_model("nfnet_micro", 5))
    x = torch.randn(2, 3, 32, 32)
    maps = model.forward_stages(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (256, 2, 2)]
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features)
    model.reset_classifier(9)
    assert model(x).shape == (2, 9) and model.num_classes == 9
    assert torch.equal(model.forward_features(x), features)
    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    with pytest.raises(WorkbenchError, match=r"`num_classes`.*-1"):
        model.reset_classifier(-1)


def test_f0_has_the_strides_that_detectors_expect():
    with torch.device("meta"):
        model, x = create_model("nfnet_f0"), torch.zeros(1, 3, 256, 256)
    maps = model.forward_stages(x)
    assert [(m.shape[1], 256 // m.shape[2]) for m in maps] == [(256, 4), (512, 8), (1536, 16), (1536, 32)]


def test_a_new_classifier_has_the_models_device_and_precision():
    model = create_model("nf_resnet_tiny", 5).double()
    model.reset_classifier(3)
    assert model.linear.weight.dtype == torch.float64


def test_glu_halves_channels_everywhere():
    for name in ("nfnet_micro", "nf_resnet_tiny", "nf_regnet_b0", "resnet_tiny", "skipinit_resnet50"):
        overrides = {"width": 2} if name.startswith("nf_regnet") else {"width": 1} if "50" in name else {}
        model = create_model(name, 5, activation="glu", **overrides)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    "activation",
    [
        "celu", "elu", "identity", "leaky_relu", "log_sigmoid", "log_softmax", "relu6",
        "selu", "sigmoid", "silu", "soft_sign", "softplus", "tanh",
    ],
)  # fmt: skip
def test_every_activation_of_the_table_builds_a_network_that_runs(activation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = moved(create_model("nfnet_micro", 5, activation=activation))(torch.randn(2, 3, 32, 32))
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["nf_resnet_tiny", "nfnet_micro"])
def test_a_compiled_training_step_has_one_graph_and_is_compiled_once(name):
    """Weights, rates and batches change over the steps. The gradients are those of the uncompiled network."""
    from torch._dynamo.utils import counters

    from workbench.optim import AGC, param_groups

    model = create_model(name, 10, in_channels=1, skip_gain=1.0, stochastic_depth=0.0, dropout=0.0)
    optimizer = torch.optim.SGD(param_groups(model), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    AGC(optimizer)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        x, y = torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        wanted = [p.grad.clone() for p in model.parameters()]
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        for p, want in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-5)
        optimizer.step()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
