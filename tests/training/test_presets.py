"""Presets. Evidence: the numbers of the fact sheet, written here a second time, and use from the command line."""

import pytest
import torch
import yaml

from workbench.errors import WorkbenchError
from workbench.lab.studies.recipes import parse_config, recipe_text
from workbench.models import create_model
from workbench.optim import warmup_cosine
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig
from workbench.training.presets import PRESETS, cifar, finetune, paper_nf_regnet, paper_nf_resnet, paper_nfnet, preset
from workbench.training.setup import steps_of

IMAGENET = 1_281_167


def test_the_nfnet_recipe_has_the_papers_numbers():
    """Source: the paper's section 4 and the authors' experiment file."""
    config = paper_nfnet("f0")
    assert (config.lr, config.batch_size, config.momentum) == (pytest.approx(1.6), 4096, 0.9)
    assert steps_of(config, IMAGENET) == 112_602
    assert config.warmup * 112_602 == pytest.approx(1563.9, abs=0.05)
    assert (config.weight_decay, config.label_smoothing, config.clip, config.clip_eps) == (2e-5, 0.1, 0.01, 1e-3)
    assert (config.mix, config.mixup_alpha, config.ema, config.final_lr) == (True, 0.2, 0.99999, 0.0)
    assert (config.rand_augment, config.rand_augment_layers) == (5.0, 4)
    assert (config.stream, config.precision) == (True, "bfloat16_copies")


def test_nfnets_differ_in_size_dropout_and_randaugment():
    """Table 1 of the paper and its appendix: train px, test px, dropout, RandAugment's level."""
    table = {
        "f0": (192, 256, 0.2, 5), "f1": (224, 320, 0.3, 10), "f2": (256, 352, 0.4, 10), "f3": (320, 416, 0.4, 15),
        "f4": (384, 512, 0.5, 15), "f5": (416, 544, 0.5, 15), "f6": (448, 576, 0.5, 15), "f7": (480, 608, 0.5, 15),
    }  # fmt: skip
    for variant, row in table.items():
        config = paper_nfnet(variant)
        assert (config.image_size, config.eval_size, config.model_args["dropout"], config.rand_augment) == row
        assert config.model_args["stochastic_depth"] == 0.25
        with torch.device("meta"):
            create_model(config.model, **config.model_args)


def test_the_schedule_of_the_recipe_peaks_at_the_authors_step():
    config = paper_nfnet()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = warmup_cosine(optimizer, config.warmup * 112_602, 112_602)
    rates = []
    for _ in range(1566):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and rates[1] == pytest.approx(1.6 / 1563.92, rel=1e-4)
    assert rates[1563] == pytest.approx(1.6 * 1563 / 1563.92, rel=1e-4) and max(rates) <= 1.6


def test_nf_resnets_and_nf_regnets_have_the_numbers_of_the_authors_experiment_files():
    r, g = paper_nf_resnet(), paper_nf_regnet("b0")
    assert (r.batch_size, r.epochs, r.lr, r.weight_decay, r.clip, r.ema) == (1024, 90.0, 0.4, 1e-4, None, None)
    assert (r.mix, r.label_smoothing, r.rand_augment, r.model_args["stochastic_depth"]) == (False, 0.1, None, 0.1)
    assert (g.batch_size, g.epochs, g.lr, g.final_lr, g.clip, g.ema) == (1024, 360.0, 0.4, 0.001, None, 0.99999)
    assert paper_nf_regnet("b0", batch_size=256).lr == 0.4  # no scaling with the batch
    decays = [paper_nf_regnet(f"b{i}").weight_decay for i in range(6)]
    assert decays == [5e-5, 6e-5, 7e-5, 8e-5, 9e-5, 1e-4]
    assert paper_nf_resnet("200").model == "nf_resnet200"


def test_fine_tuning_has_the_papers_numbers():
    nfnet, resnet = finetune("nfnet_f0"), finetune("nf_resnet50")
    for config in (nfnet, resnet):
        assert (config.batch_size, config.steps, config.lr, config.final_lr) == (2048, 15_000, 0.1, 0.0)
        assert config.warmup * config.steps == pytest.approx(5_000)
        assert config.replace(batch_size=64).lr == 0.1
    assert (nfnet.sam_rho, nfnet.weight_decay) == (0.05, 1e-5)
    assert nfnet.model_args == {"dropout": 0.25, "stochastic_depth": 0.1}
    assert (resnet.ema, resnet.weight_decay, resnet.sam_rho) == (0.9999, 0.0, None)
    assert resnet.model_args == {"dropout": 0.0, "stochastic_depth": 0.0}
    assert finetune("nf_resnet50", weights="mine.safetensors").weights == "mine.safetensors"


def test_the_recipe_for_small_images_trains(tmp_path):
    from workbench.training import train

    small = {"data": "mnist5k", "model": "nf_resnet_tiny", "batch_size": 32, "epochs": None, "steps": 2}
    assert train(cifar(**small, device="cpu", progress=False)).outcome in FINISHED


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_round_trips_through_yaml(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(preset(name)))
    assert parse_config({}, str(file)) == preset(name) == PRESETS[name]()


def test_parameters_change_a_recipe_and_one_length_resets_the_other(tmp_path):
    config = parse_config({"steps": "100", "clip": "0.02", "batch_size": "64"}, "paper_nfnet:f3")
    assert (config.model, config.steps, config.epochs, config.clip) == ("nfnet_f3", 100, None, 0.02)
    (tmp_path / "r.yaml").write_text("model: nf_resnet_tiny\nweight_decay: 1e-4\n")
    config = parse_config({}, str(tmp_path / "r.yaml"))
    assert config == TrainConfig(weight_decay=1e-4, epochs=1.0)


def test_a_change_resets_the_fields_that_depend_on_it():
    assert paper_nfnet("f1", image_size=32).eval_size is None
    assert paper_nfnet("f1", image_size=32, eval_size=48).eval_size == 48
    assert parse_config({"image_size": "64"}, "paper_nfnet").eval_size is None
    assert finetune("nfnet_f0", stream=False).eval_size is None
    assert paper_nfnet("f1", steps=10).epochs is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("clip={", ["clip={", "YAML"]),
        ("seed=:", ["seed=:"]),
        ("model_args={num_classes: 7}", ["`model_args`", "{'num_classes': 7}", "num_classes and in_channels"]),
        ("model_args={1: 2}", ["`model_args`", "{1: 2}"]),
        ("clip_exempt=[1]", ["`clip_exempt`", "[1]"]),
        ("clip=none", ["`clip`", "'none'", "null"]),
        ("data=", ["`data`"]),
        ("data=~nosuch/x", ["~nosuch/x"]),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_value_and_without_a_traceback(root, command, given, named):
    code, _, errors = command("train", "-p", given, "-p", "steps=1")
    assert code == 2 and all(part in errors for part in named) and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("paper_nfnet:f9", "NFNet 'f9'"),
        ("paper_nf_resnet:51", "NF-ResNet '51'"),
        ("paper_nf_regnet:b7", "NF-RegNet 'b7'"),
        ("paper_nfet", "'paper_nfet'.*'paper_nfnet'"),
        ("cifar:nf_resnet26_cifr", "'nf_resnet26_cifr'.*'nf_resnet26_cifar'"),
        ("finetune:nfnet_f10", "'nfnet_f10'.*'nfnet_f1'"),
        ("cifar:", "'cifar:'"),
    ],
)
def test_unknown_presets_are_refused_with_the_nearest(text, named):
    with pytest.raises(WorkbenchError, match=named):
        preset(text)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("modle: nfnet_f0", ["'modle'", "'model'"]),
        ("- model", ["r.yaml", "TrainConfig"]),
        ("a: b: c", ["r.yaml", "YAML"]),
        ("steps: many", ["`steps`", "'many'", "int"]),
        ("!!python/object/apply:os.system ['true']", ["r.yaml", "YAML"]),
    ],
)
def test_a_wrong_recipe_is_refused_without_a_traceback(root, tmp_path, command, content, named):
    (tmp_path / "r.yaml").write_text(content)
    code, _, errors = command("train", tmp_path / "r.yaml")
    assert code == 2 and all(part in errors for part in named) and "Traceback" not in errors, errors


def test_show_prints_every_number_and_writes_nothing(root, command):
    before = sorted((root / "mlruns").rglob("*"))
    code, output, _ = command("train", "paper_nfnet:f0", "-p", "clip=0.02", "--show")
    assert code == 0 and yaml.safe_load(output) == paper_nfnet("f0", clip=0.02).to_dict()
    assert sorted((root / "mlruns").rglob("*")) == before


def test_train_reads_a_recipe_from_a_file(root, tmp_path, command):
    (tmp_path / "r.yaml").write_text("model: nf_resnet_tiny\nsteps: 2\ntrain_size: 128\nbatch_size: 32\ndevice: cpu\n")
    code, output, _ = command("train", tmp_path / "r.yaml", "-p", "clip=0.05")
    assert code == 0 and "nf_resnet_tiny B32 lr0.0125 c0.05 s0: AGC clips at 0.05" in output
    assert "mnist5k: 3,500 train, 500 val" in output
