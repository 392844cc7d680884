"""Reading and writing weights.

Evidence: files written by real dill in the released layout, hostile files that leave a trace when they run, timm's own
names and shapes. Networks must compute the same before and after.
"""

import contextlib
import io
import json
import os
import pickle
import struct
from pathlib import Path

import dill
import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkout import SHARED_DATA

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.weights import RELEASED, convert, from_haiku, load_checkpoint, save_checkpoint, to_haiku
from workbench.weights.input_channels import adapt_in_channels
from workbench.weights.pickles import read_pickle
from workbench.weights.reading import read_weights
from workbench.weights.timm_layout import to_timm


def moved(model):
    """Move every parameter off its special starting value, and switch to evaluation mode."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def small(name="nfnet_micro", classes=5, **overrides):
    return moved(create_model(name, classes, **overrides))


def same(a, b, x=None):
    x = torch.randn(2, 3, 33, 32) if x is None else x
    return torch.equal(a.eval()(x), b.eval()(x))


# ---- the released layout


def test_released_names_and_axes_are_the_published_ones():
    tree = to_haiku(create_model("nfnet_micro", 5))
    shapes = {f"{module}:{name}": array.shape for module, arrays in tree.items() for name, array in arrays.items()}
    expected = {
        "NFNet/~/stem_conv0:w": (3, 3, 3, 8),
        "NFNet/~/stem_conv3:gain": (32,),
        "NFNet/~/nf_block:skip_gain": (),
        "NFNet/~/nf_block/~/conv_shortcut:w": (1, 1, 32, 64),
        "NFNet/~/nf_block/~/conv1:w": (3, 3, 16, 32),  # two groups of 16
        "NFNet/~/nf_block_4/~/conv1b:bias": (128,),
        "NFNet/~/nf_block_4/~/squeeze_excite/~/linear:w": (256, 128),
        "NFNet/~/nf_block_4/~/squeeze_excite/~/linear_1:b": (256,),
        "NFNet/~/final_conv:w": (1, 1, 256, 512),
        "NFNet/~/linear:w": (512, 5),
        "NFNet/~/linear:b": (5,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    for name, net, block in (
        ("nf_resnet_tiny", "NF_ResNet", "nf_res_block"),
        ("nf_regnet_b0", "NF_RegNet", "nf_block"),
    ):
        tree = to_haiku(create_model(name, 5))
        assert {f"{net}/~/initial_conv", f"{net}/~/{block}", f"{net}/~/{block}_2/~/conv2", f"{net}/~/linear"} <= set(
            tree
        )


def test_f0_has_the_published_number_of_arrays():
    with torch.device("meta"):
        model = create_model("nfnet_f0")
    assert len(list(model.parameters())) == 233


def test_axes_are_permuted_as_released():
    model = create_model("nf_resnet_tiny", 5)
    tree = to_haiku(model)
    w = tree["NF_ResNet/~/nf_res_block_1/~/conv1"]["w"]  # (kh, kw, in, out)
    ours = model.blocks[1].conv1.weight
    assert ours[3, 5, 0, 2].item() == w[0, 2, 5, 3]
    assert model.linear.weight[4, 7].item() == tree["NF_ResNet/~/linear"]["w"][7, 4]


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny", "nf_regnet_b0"])
def test_the_round_trip_is_the_same_network(name):
    a, b = small(name), small(name)
    assert not same(a, b)
    from_haiku(to_haiku(a), b)
    assert same(a, b)


def test_loading_is_strict_and_leaves_the_model_alone():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for spoil, message in (
        (lambda t: t["NFNet/~/nf_block_2"].pop("skip_gain"), "missing.*NFNet/~/nf_block_2/skip_gain"),
        (lambda t: t.update(extra={"w": np.zeros(3)}), "extra.*extra/w"),
        (lambda t: t["NFNet/~/linear"].update(b=np.zeros(6)), "shape.*NFNet/~/linear/b.*6.*5"),
        (lambda t: t["NFNet/~/linear"].update(b=np.zeros(5, np.int64)), "NFNet/~/linear/b.*torch.int64"),
    ):
        tree = to_haiku(small())
        spoil(tree)
        with pytest.raises(WorkbenchError, match=message):
            from_haiku(tree, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_families_have_no_released_layout():
    with pytest.raises(WorkbenchError, match=r"NFNet, NFResNet, NFRegNet .*\bResNet"):
        to_haiku(create_model("resnet_tiny", 5))


# ---- released files


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny"])
def test_files_of_real_dill_load_and_are_recognised(tmp_path, protocol, name):
    model = small(name, 7, in_channels=1)
    file = tmp_path / "weights.npz"
    file.write_bytes(dill.dumps(to_haiku(model), protocol=protocol))
    loaded = load_checkpoint(file)
    assert loaded.recipe == {"name": name, "in_channels": 1} and loaded.num_classes == 7
    assert same(model, loaded, torch.randn(2, 1, 28, 28))


def test_older_spellings_and_scalars_load(tmp_path):
    tree = {
        "a": {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "s": np.float32(2.5),
            "f": np.asfortranarray(np.eye(3)[:2]),
        }
    }
    data = dill.dumps(tree, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in data
    (tmp_path / "old.npz").write_bytes(data)
    read = read_pickle(tmp_path / "old.npz")
    assert all(np.array_equal(read["a"][k], tree["a"][k]) for k in tree["a"])


class _Runs:
    """Runs a call when an ordinary unpickler reads it."""

    def __init__(self, call, *arguments):
        self.made = (call, arguments)

    def __reduce__(self):
        return self.made


def _hostile(kind: str, trace: Path) -> bytes:
    command = f"touch {trace}"
    if kind == "reduce":
        return pickle.dumps({"NFNet/~/linear": {"w": _Runs(os.system, command)}})
    if kind == "eval":
        return pickle.dumps({"a": _Runs(eval, f"__import__('os').system({command!r})")})
    if kind == "create_array":  # dill's function calls any function that it gets
        return pickle.dumps({"a": {"w": _Runs(dill._dill._create_array, os.system, (command,), None)}})
    if kind == "object array":  # a reader that admits arrays of objects unpickles their elements, and runs them
        return pickle.dumps({"a": {"w": np.array([_Runs(os.system, command)], dtype=object)}})
    if kind == "object array by dill":
        return dill.dumps({"a": {"w": np.array([_Runs(os.system, command)], dtype=object)}})
    if kind == "state of a function":  # BUILD on an admitted name
        return b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb."
    if kind == "attribute of a module":  # protocol 4 walks dotted names
        return b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    if kind == "near a known name":
        return b"\x80\x02cnumpy.core.multiarray\nfromfile\n."
    if kind == "structured dtype":
        return pickle.dumps({"a": {"w": np.zeros(2, dtype=[("x", "f4")])}})
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "reduce", "eval", "create_array", "object array", "object array by dill", "state of a function",
        "attribute of a module", "near a known name", "structured dtype",
    ],
)  # fmt: skip
def test_hostile_files_are_refused_and_run_nothing(tmp_path, kind):
    trace, file = tmp_path / "trace", tmp_path / "hostile.npz"
    file.write_bytes(_hostile(kind, trace))
    with pytest.raises(WorkbenchError):
        load_checkpoint(file)
    assert not trace.exists()


def test_a_file_cannot_set_the_defaults_of_the_readers_functions(tmp_path):
    array = np.arange(3.0)
    by_dill = pickle.dumps({"a": {"w": _Runs(dill._dill._create_array, *array.__reduce__())}})
    state = b"(N}X\x0c\x00\x00\x00__defaults__K\x01\x85st"  # (None, {"__defaults__": (1,)})
    (tmp_path / "hostile.npz").write_bytes(b"\x80\x02cdill._dill\n_create_array\n" + state + b"b.")
    (tmp_path / "good.npz").write_bytes(by_dill)
    with pytest.raises(WorkbenchError):
        load_checkpoint(tmp_path / "hostile.npz")
    assert np.array_equal(read_pickle(tmp_path / "good.npz")["a"]["w"], array)


@pytest.mark.parametrize("kind", ["reduce", "eval", "create_array"])
def test_the_hostile_files_would_have_run(tmp_path, kind):
    trace = tmp_path / "trace"
    with contextlib.suppress(Exception):
        pickle.loads(_hostile(kind, trace))
    assert trace.exists()


def test_the_refusal_names_the_function(tmp_path):
    (tmp_path / "x.npz").write_bytes(_hostile("reduce", tmp_path / "trace"))
    with pytest.raises(WorkbenchError, match=r"(posix|nt)\.system.*executed"):
        load_checkpoint(tmp_path / "x.npz")


def test_damaged_files_are_refused(tmp_path):
    whole = dill.dumps(to_haiku(small()), protocol=4)
    for i, data in enumerate((b"", b"not a pickle", whole[: len(whole) // 2], whole[:-1])):
        file = tmp_path / f"{i}.npz"
        file.write_bytes(data)
        with pytest.raises(WorkbenchError, match=rf"{file.name}.*damaged"):
            load_checkpoint(file)
    (tmp_path / "list.npz").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(WorkbenchError, match=r"list\.npz.*\blist\b.*dict"):
        load_checkpoint(tmp_path / "list.npz")


def test_a_file_with_a_released_name_must_be_the_released_file(tmp_path):
    file = tmp_path / "F0_haiku.npz"
    file.write_bytes(dill.dumps(to_haiku(small())))
    with pytest.raises(WorkbenchError, match=rf"F0_haiku\.npz.*md5.*{RELEASED['nfnet_f0'].digest[4:]}"):
        load_checkpoint(file)
    assert load_checkpoint(file, verify=False).recipe["name"] == "nfnet_micro"


def test_every_released_file_has_a_model_and_a_digest():
    for name, released in RELEASED.items():
        create_model_on_meta(name)
        kind, _, digest = released.digest.partition(":")
        assert (kind, len(digest)) == ("md5", 32) or (kind == "sha256" and digest in released.file_name)


def create_model_on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


# ---- timm


def timm_keys(name):
    file = Path(SHARED_DATA or ".") / "timm_keys" / f"{name}.json"
    if not file.is_file():
        pytest.skip("timm's names and shapes are missing: set WORKBENCH_DATA to the folder that holds timm_keys/")
    return {key: tuple(shape) for key, shape in json.loads(file.read_text()).items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("nfnet_f0", "dm_nfnet_f0"), ("nfnet_f1", "dm_nfnet_f1"), ("timm_nf_resnet50", "nf_resnet50"),
        ("timm_nf_regnet_b1", "nf_regnet_b1"), ("timm_eca_nfnet_l0", "eca_nfnet_l0"),
    ],
)  # fmt: skip
def test_our_names_and_shapes_in_timms_layout_are_timms(ours, theirs):
    state = to_timm(create_model_on_meta(ours))
    assert {key: tuple(value.shape) for key, value in state.items()} == timm_keys(theirs)


def test_a_timm_file_is_recognised_and_loads(tmp_path):
    keys = timm_keys("nf_regnet_b1")
    state = {key: torch.randn(shape) for key, shape in keys.items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    model = load_checkpoint(tmp_path / "weights.pth")
    assert model.recipe["name"] == "timm_nf_regnet_b1"
    assert torch.equal(model.blocks[1].conv2.gain, state["stages.0.1.conv3.gain"].flatten())
    assert all(torch.equal(value, state[key]) for key, value in to_timm(model).items())


def test_a_timm_net_that_computes_another_function_is_refused(tmp_path):
    state = {key: torch.zeros(shape) for key, shape in timm_keys("nfnet_f0").items()}  # without skip gains
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WorkbenchError, match=r"nfnet_f0.*missing.*blocks\.0\.skip_gain"):
        load_checkpoint(tmp_path / "weights.pth")


def test_the_timm_layout_round_trips_with_and_without_a_quad_stem(tmp_path):
    for name in ("nfnet_micro", "timm_nf_resnet50"):
        model = small(name, 3)
        torch.save(to_timm(model), tmp_path / "x.pth")
        assert same(model, load_checkpoint(tmp_path / "x.pth"))


def test_a_pth_that_runs_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"w": _Runs(os.system, f"touch {trace}")}, tmp_path / "x.pth")
    with pytest.raises(WorkbenchError, match=r"x\.pth.*executed") as error:
        load_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)
    assert not trace.exists()


# ---- our own files


def test_our_files_name_their_network_with_its_constants(tmp_path):
    model = small("nf_resnet_tiny", 4, in_channels=1, activation="silu", alpha=0.3)
    file = save_checkpoint(model, tmp_path / "deep" / "x.safetensors")
    loaded = load_checkpoint(file)
    assert loaded.recipe["alpha"] == 0.3
    assert same(model, loaded, torch.randn(2, 1, 28, 28))
    assert list(file.parent.iterdir()) == [file]  # no unfinished file next to it


def test_weights_of_other_constants_are_refused(tmp_path):
    file = save_checkpoint(small("nf_resnet_tiny", 4, activation="silu"), tmp_path / "x.safetensors")
    with pytest.raises(WorkbenchError, match=r"`activation`.*relu.*silu"):
        load_checkpoint(file, create_model("nf_resnet_tiny", 4))
    load_checkpoint(file, create_model("nf_resnet_tiny", 4, activation="silu", dropout=0.3))  # dropout may differ


def test_weights_of_a_network_with_a_function_as_activation_load_only_into_a_model(tmp_path):
    model = small("nf_resnet_tiny", 4, activation=torch.tanh)
    file = save_checkpoint(model, tmp_path / "x.safetensors")
    into = create_model("nf_resnet_tiny", 4, activation=torch.tanh)
    assert same(model, load_checkpoint(file, into))
    with pytest.raises(WorkbenchError, match=r"x\.safetensors.*activation.*load_checkpoint\(file, model\)"):
        load_checkpoint(file)  # its shapes are those of the ReLU net


def test_an_explicit_default_equals_the_default(tmp_path):
    file = save_checkpoint(small("nf_resnet_tiny", 4), tmp_path / "x.safetensors")
    load_checkpoint(file, create_model("nf_resnet_tiny", 4, alpha=0.2, activation="relu", in_channels=3))


def test_converting_keeps_the_preprocessing_and_accepts_an_explicit_default(tmp_path):
    images = {"mean": [0.5], "std": [0.2], "image_size": 28, "style": "whole"}
    file = save_checkpoint(small("nfnet_micro", 4, alpha=0.2), tmp_path / "x.safetensors", images)
    convert(file, tmp_path / "y.safetensors")
    assert read_weights(tmp_path / "y.safetensors").preprocess == images
    convert(file, tmp_path / "z.npz")


def test_networks_that_a_file_cannot_name_are_not_saved(tmp_path):
    from workbench.models.nf_resnet import NFResNet
    from workbench.weights.export import fold

    model = small("nf_resnet_tiny", 4)
    for bad in (fold(model), NFResNet(depth=(1, 1, 1), widths=(32, 64, 128), width=1)):
        with pytest.raises(WorkbenchError, match=rf"\b{type(bad).__name__}\b.*state_dict"):
            save_checkpoint(bad, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_prefixes_of_wrappers_are_ignored(tmp_path):
    model = small("nf_resnet_tiny", 4)
    torch.save({f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, tmp_path / "x.pth")
    assert same(model, load_checkpoint(tmp_path / "x.pth"))


def test_convert_refuses_layouts_that_cannot_store_the_constants(tmp_path):
    file = save_checkpoint(small("nfnet_micro", 4, alpha=0.5), tmp_path / "x.safetensors")
    for target, layout in (("y.pth", "workbench"), ("y.npz", "workbench"), ("y.safetensors", "timm")):
        with pytest.raises(WorkbenchError, match=rf"nfnet_micro.*alpha=0\.5.*\.{target.split('.')[1]}"):
            convert(file, tmp_path / target, layout=layout)
    assert convert(file, tmp_path / "z.safetensors").recipe["alpha"] == 0.5


@pytest.mark.parametrize("target", ["folder.safetensors", "file/x.safetensors", "x.pth", "a" * 300 + ".safetensors"])
def test_targets_that_cannot_be_written_are_refused(tmp_path, target):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkbenchError) as error:
        save_checkpoint(small("nf_resnet_tiny", 4), tmp_path / target)
    assert str(tmp_path / target)[:80] in str(error.value)  # a long path is cut off


def test_a_device_is_never_replaced():
    before = os.stat(os.devnull).st_mode
    with pytest.raises(WorkbenchError):
        save_checkpoint(small("nf_resnet_tiny", 4), os.devnull)
    assert os.stat(os.devnull).st_mode == before


def test_files_follow_the_umask_links_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = small("nf_resnet_tiny", 4)
    file = save_checkpoint(model, "~/x.safetensors")
    assert file == tmp_path / "x.safetensors" and same(model, load_checkpoint("~/x.safetensors"))
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "link.safetensors").symlink_to(file)
    save_checkpoint(small("nf_resnet_tiny", 4), tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink() and not same(model, load_checkpoint(file))


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny", "nf_regnet_b0", "resnet_tiny"])
def test_networks_can_be_pickled_whole(name):
    model = create_model(name, 3).eval()
    assert same(model, pickle.loads(pickle.dumps(model)))


def test_a_bfloat16_network_is_written_in_the_released_layout():
    tree = to_haiku(small("nf_resnet_tiny", 4).to(torch.bfloat16))
    assert tree["NF_ResNet/~/linear"]["b"].dtype == np.float32


def _bomb(kind: str) -> bytes:
    if kind == "shared dicts":
        parts = b"\x80\x02}q\x00"
        for i in range(24):  # each dict holds the previous one twice
            parts += (
                b"}q"
                + bytes([i + 1])
                + b"(X\x01\x00\x00\x00ah"
                + bytes([i])
                + b"X\x01\x00\x00\x00bh"
                + bytes([i])
                + b"u"
            )
        return parts + b"."
    if kind == "tuple key":
        parts = b"\x80\x02)q\x000"
        for i in range(60):  # each tuple holds the previous one twice: a hash visits 2^60 of them
            parts += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0"
        return parts + b"}h\x3cNs."
    if kind == "memo":
        return b"\x80\x04}r\xff\xff\xff\x07."
    array = b"\x80\x02}X\x01\x00\x00\x00acnumpy._core.numeric\n_frombuffer\n"
    array += b"(C\x04\x00\x00\x00\x00cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
    if kind == "huge shape":
        return array + b"(X\x01\x00\x00\x00zJ\x00\x00\x00\x40tX\x01\x00\x00\x00CtRs."
    if kind == "long integer":
        return array + b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b"\x85X\x01\x00\x00\x00CtRs."
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["shared dicts", "tuple key", "memo", "huge shape", "long integer"])
def test_small_files_cannot_take_much_time_or_memory(tmp_path, kind):
    import resource
    import time

    (tmp_path / "x.npz").write_bytes(_bomb(kind))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(WorkbenchError):
        load_checkpoint(tmp_path / "x.npz")
    assert time.perf_counter() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_long_or_ugly_name_is_shown_short_and_plain(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"\x80\x02cos\n" + b"\x1b[31m" + b"x" * 100_000 + b"\n.")
    with pytest.raises(WorkbenchError) as error:
        load_checkpoint(tmp_path / "x.npz")
    assert len(str(error.value)) < 500 and "\x1b" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".npz"])
@pytest.mark.parametrize("content", [b"", b"text, renamed", b"\x00" * 100])
def test_files_without_weights_are_refused(tmp_path, suffix, content):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(WorkbenchError, match=rf"x\{suffix}"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    "state",
    [
        {0: torch.ones(1)},
        {"linear.bias": torch.tensor(1.0)},
        {"stem.weight": torch.ones(3)},
        {"a": torch.ones(2).to_sparse()},
        {},
    ],
)
def test_state_dicts_of_no_known_network_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WorkbenchError, match=r"x\.pth"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "recipe", ["{", "[1]", '{"name": "nf_resnet_tiny", "width": "a"}', '{"name": "nf_resnet_tyni"}']
)
def test_an_invalid_recipe_is_refused(tmp_path, recipe):
    from safetensors.torch import save_file

    save_file(
        {"linear.bias": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "normfree-workbench/1", "recipe": recipe}
    )
    with pytest.raises(WorkbenchError, match=r"x\.safetensors.*load_checkpoint\(file, model\)"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_file_that_names_code_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    recipe = json.dumps({"name": "evil.py:build", "num_classes": 2, "source": "0" * 16})
    metadata = {"format": "normfree-workbench/1", "recipe": recipe}
    safetensors.torch.save_file({"linear.bias": torch.ones(2)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(WorkbenchError, match=r"x\.safetensors.*evil\.py:build"):
        load_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tree",
    [
        [1],
        {"NFNet/~/linear": np.ones(2)},
        {"NFNet/~/linear": {"b": np.float32(1)}},
        {"a": {"b": {"c": {"d": {"e": 1}}}}},
    ],
)
def test_invalid_trees_are_refused(tmp_path, tree):
    (tmp_path / "x.npz").write_bytes(pickle.dumps(tree))
    with pytest.raises(WorkbenchError):
        load_checkpoint(tmp_path / "x.npz")


def test_arguments_of_other_types_are_refused(tmp_path):
    model = small("nf_resnet_tiny", 4)
    for call in (lambda: load_checkpoint(None), lambda: load_checkpoint(5), lambda: from_haiku(None, model)):
        with pytest.raises(WorkbenchError):
            call()
    tree = to_haiku(model)
    tree["NF_ResNet/~/linear"]["b"] = np.array(["a", "b"])
    with pytest.raises(WorkbenchError, match=r"linear\.bias.*U1"):
        from_haiku(tree, model)


def test_a_frozen_stem_stays_frozen():
    model = small("nf_resnet_tiny", 4)
    for p in model.stem.parameters():
        p.requires_grad_(False)
    adapt_in_channels(model, 1)
    assert not any(p.requires_grad for p in model.stem.parameters())


def test_batchnorm_statistics_are_saved_too(tmp_path):
    model = create_model("resnet_tiny", 4)
    model(torch.randn(8, 3, 28, 28))
    assert same(model, load_checkpoint(save_checkpoint(model, tmp_path / "x.safetensors")))


def test_loading_into_the_wrong_net_names_the_right_one(tmp_path):
    file = save_checkpoint(small("nf_resnet_tiny", 4), tmp_path / "x.safetensors")
    with pytest.raises(
        WorkbenchError,
        match=r"x\.safetensors.*create_model\('nf_resnet_tiny', num_classes=4\).*nfnet_micro",
    ):
        load_checkpoint(file, create_model("nfnet_micro", 4))
    torch.save(small("nf_resnet26_cifar", 4).state_dict(), tmp_path / "y.pth")  # without a recipe its shapes decide
    with pytest.raises(WorkbenchError, match=r"y\.pth.*create_model\('nf_resnet26_cifar', num_classes=4"):
        load_checkpoint(tmp_path / "y.pth", create_model("nf_resnet_tiny", 4))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nfnet_f9", "'nfnet_f9'.*'nfnet_f"),
        ("nf_resnet50", "'nf_resnet50'.*nfnet_f0, "),
        ("nowhere.npz", r"nowhere\.npz"),
        ("folder/nowhere", "folder/nowhere"),
    ],
)
def test_missing_sources_are_named(source, message):
    with pytest.raises(WorkbenchError, match=message):
        load_checkpoint(source)


def test_other_suffixes_and_broken_safetensors_are_refused(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(WorkbenchError, match=r"x\.h5.*\.npz.*\.safetensors.*\.pth"):
        load_checkpoint(tmp_path / "x.h5")
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"x")
    with pytest.raises(WorkbenchError, match=r"x\.safetensors"):
        load_checkpoint(tmp_path / "x.safetensors")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(WorkbenchError, match=r"x\.pth.*state dict"):
        load_checkpoint(tmp_path / "x.pth")


# ---- fine-tuning


def test_another_number_of_classes_gets_a_new_classifier_and_keeps_the_rest(tmp_path):
    model = small("nfnet_micro", 6)
    file = save_checkpoint(model, tmp_path / "x.safetensors")
    loaded = load_checkpoint(file, num_classes=3, dropout=0.5).eval()
    x = torch.randn(2, 3, 32, 32)
    assert loaded(x).shape == (2, 3) and loaded.dropout.p == 0.5
    assert torch.equal(loaded.forward_features(x), model.forward_features(x))
    assert loaded.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    headless = load_checkpoint(file, num_classes=0).eval()
    assert torch.equal(headless(x), model.forward_features(x))
    with pytest.raises(WorkbenchError, match=r"`model`.*`num_classes`"):
        load_checkpoint(file, create_model("nfnet_micro", 6), num_classes=3)


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny", "resnet_tiny"])
def test_fewer_input_channels_act_as_repeated_ones(name):
    model = small(name, 5).double()
    for channels in (1, 2):
        adapted = small(name, 5).double()
        adapted.load_state_dict(model.state_dict())
        adapt_in_channels(adapted, channels)
        x = torch.randn(2, channels, 28, 28, dtype=torch.float64)
        repeated = x[:, [i % channels for i in range(3)]]
        torch.testing.assert_close(adapted(x), model(repeated), rtol=1e-10, atol=1e-12)
        assert adapted.recipe["in_channels"] == channels


def test_more_input_channels_start_silent_and_can_learn():
    model, adapted = small().double(), small().double()
    adapted.load_state_dict(model.state_dict())
    adapt_in_channels(adapted, 5)
    x = torch.randn(2, 5, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(adapted(x), model(x[:, :3]), rtol=1e-10, atol=1e-12)
    adapted(x).sum().backward()
    assert adapted.stem[0].weight.grad[:, 3:].abs().sum() > 0
    norms = [m.stem[0].weight.flatten(1).norm(dim=1) for m in (model, adapted)]
    torch.testing.assert_close(norms[0], norms[1], rtol=0.2, atol=0.0)  # what AGC clips by stays as it was


# ---- converting


def test_convert_reaches_every_layout_and_comes_back(tmp_path):
    model = small("nfnet_micro", 5)
    first = save_checkpoint(model, tmp_path / "a.safetensors")
    steps = [
        ("b.npz", "workbench"),
        ("c.pth", "timm"),
        ("d.safetensors", "timm"),
        ("e.pth", "workbench"),
        ("f.safetensors", "workbench"),
    ]
    for name, layout in steps:
        convert(first, tmp_path / name, layout=layout)
        first = tmp_path / name
        assert same(model, load_checkpoint(first)), name
    assert "stages.0.0.conv1.gain" in torch.load(tmp_path / "c.pth", weights_only=True)
    tree = dill.load(io.BytesIO((tmp_path / "b.npz").read_bytes()))  # as the authors' code reads it
    assert tree["NFNet/~/nf_block"]["skip_gain"].shape == ()


@pytest.mark.parametrize(
    ("target", "layout", "message"),
    [
        ("x.onnx", "workbench", r"x\.onnx.*\.safetensors.*\.pth.*\.npz"),
        ("x.pth", "tim", "'tim'.*'timm'"),
        ("x.npz", "timm", r"x\.npz.*'timm'"),
    ],
)
def test_convert_refuses_invalid_targets_and_layouts(tmp_path, target, layout, message):
    with pytest.raises(WorkbenchError, match=message):
        convert("nowhere.npz", tmp_path / target, layout=layout)


def test_networks_that_timm_lacks_are_not_written_in_its_layout(tmp_path):
    file = save_checkpoint(small("nf_resnet_tiny", 5), tmp_path / "x.safetensors")
    with pytest.raises(WorkbenchError, match=r"timm.*NFResNet"):
        convert(file, tmp_path / "y.pth", layout="timm")
    assert not (tmp_path / "y.pth").exists()
