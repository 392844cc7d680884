"""Tables of signal propagation, as the notebook uses them.

Evidence: the arms follow from what a network has, equal seeds give equal networks, and the theory is added if it covers
the network.
"""

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.probes import signal_propagation
from workbench.probes.signal import in_training
from workbench.probes.sweep import arms_of, inputs_of, measure_signals, variations


def test_a_network_is_compared_with_the_arms_that_it_has():
    assert list(arms_of("nf_resnet50")) == ["NF", "NF without scaled WS", "BN"]
    assert list(arms_of("nfnet_f0")) == ["NF"]
    assert list(arms_of("resnet50")) == ["BN"]
    assert list(arms_of("timm_nf_resnet50")) == ["timm_nf_resnet50"]
    assert list(arms_of("mine.py:net")) == ["mine.py:net"]
    with pytest.raises(WorkbenchError, match=r"'nf_resnet5'.*'nf_resnet50'"):
        arms_of("nf_resnet5")


def test_factors_that_a_network_does_not_have_are_left_out():
    arms = variations("nfnet_micro", {"width": [1, 2], "standardize": [True], "skip_gain": [0.5]})
    assert {factor: list(labels) for factor, labels in arms.items()} == {"width": ["1", "2"], "skip_gain": ["0.5"]}
    assert arms["width"]["2"] == ("nfnet_micro", {"skip_gain": 1.0, "width": 2})
    assert arms["skip_gain"]["0.5"] == ("nfnet_micro", {"skip_gain": 0.5})


def test_gray_images_are_resized_and_normalised_in_three_channels():
    inputs = inputs_of(40, 8, "mnist5k")
    assert {name: tuple(x.shape) for name, x in inputs.items()} == dict.fromkeys(("noise", "images"), (8, 3, 40, 40))
    assert torch.equal(inputs["images"][:, 0], inputs["images"][:, 2])
    assert inputs["images"].mean().abs() < 0.3
    with pytest.raises(WorkbenchError, match=r"`image_size` .* 8, .* 4"):
        inputs_of(4, 8, None)


def test_the_table_has_every_measurement_with_its_theory():
    arms = {"NF": ("nf_resnet_tiny", {"skip_gain": 1.0}), "FixUp": ("fixup_resnet50", {"width": 0.25})}
    inputs = inputs_of(32, 4, "mnist5k")
    table = measure_signals(arms, inputs, [0, 3])
    torch.manual_seed(3)
    model = create_model("nf_resnet_tiny", 10, skip_gain=1.0)
    with in_training(model):
        alone = signal_propagation(model, inputs["images"], backward=True)
    rows = table[(table.arm == "NF") & (table.input == "images") & (table.seed == 3)]
    assert rows["var"].tolist() == alone["var"].tolist() and rows.grad_var.tolist() == alone.grad_var.tolist()
    assert rows.expected_var.notna().all() and table[table.arm == "FixUp"].expected_var.isna().all()
    assert table.groupby(["arm", "input", "seed"]).ngroups == 8


def test_a_users_network_is_measured_by_its_path(tmp_path):
    (tmp_path / "user_net.py").write_text(
        "from workbench.models import create_model\n\n\ndef net():\n    return create_model('resnet_tiny', 10)\n"
    )
    name = f"{tmp_path}/user_net.py:net"
    table = measure_signals(arms_of(name), inputs_of(32, 4, None), [0])
    assert table["var"].gt(0).all() and set(table.arm) == {name}
