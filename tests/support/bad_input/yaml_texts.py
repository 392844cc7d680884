"""Recipes in YAML and values on the command line."""

from support.bad_input import cases

NINES = "9" * 26


def files():
    """Return YAML that is nested, large or strange, by file name."""
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    return {
        "empty.yaml": "",
        "blank.yaml": "# nothing\n---\n",
        "list.yaml": "- model\n",
        "typo.yaml": "modle: nf_resnet_tiny\n",
        "kind.yaml": "model: nf_resnet_tiny\nsteps: many\n",
        "number.yaml": "3: nf_resnet_tiny\nsteps: 2\n",
        "open.yaml": "model: [nfnet_f0\n",
        "tag.yaml": "model: !!python/object/apply:os.system ['true']\n",
        "unknown_tag.yaml": "seed: !sea 3\n",
        "date.yaml": "seed: 2024-13-45\n",
        "bomb.yaml": bomb + "model_args: *i\n",
        "recursive.yaml": "model_args: &x {a: *x}\n",
        "deep.yaml": "model_args: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "digits.yaml": f"steps: {'9' * 5000}\n",
        "huge.yaml": f"steps: {NINES}\n",
        "long_name.yaml": f"{'m' * 300}: 3\n",
        "large.yaml": "seed: 1  # " + "x" * (4 << 20) + "\n",
        "null_byte.yaml": "model: a\x00b\n",
        "binary.yaml": bytes(range(256)),
    }


SAVED = "train -p steps=1 --save"
CASES = [
    *cases(
        "missing",
        ("train {bad}/nowhere.yaml", ["nowhere.yaml"]),
        (f"{SAVED} {{bad}}/file/x.safetensors", ["file/x.safetensors"]),
    ),
    *cases(
        "empty",
        ("train {bad}/empty.yaml", ["empty.yaml", "TrainConfig"]),
        ("train {bad}/blank.yaml", ["blank.yaml", "TrainConfig"]),
        ("train -p =3", ["=3", "NAME=VALUE"]),
        ("train -p data= -p steps=1", ["data"]),
    ),
    *cases(
        "wrong type",
        ("train {bad}/list.yaml", ["list.yaml", "TrainConfig"]),
        ("train {bad}/kind.yaml", ["steps", "many", "int"]),
        ("train {bad}/number.yaml", ["TrainConfig", "3", "base_lr"]),
        ("train {bad}/date.yaml", ["seed", "2024-13-45"]),
        ("train -p seed=2024-13-45", ["seed", "2024-13-45"]),
        ("train -p seed=1.5", ["seed", "1.5", "int"]),
        ("train -p model_args=3 -p steps=1", ["model_args", "3", "dict"]),
        ("train -p clip_exempt=[3] -p steps=1", ["clip_exempt", "[3]"]),
        ("train -p 'model_args={width: wide}' -p steps=1", ["width", "wide"]),
        (f"{SAVED} x.txt", ["x.txt", ".safetensors"]),
    ),
    *cases(
        "wrong value",
        ("train {bad}/typo.yaml", ["modle", "model"]),
        ("train {bad}/tag.yaml", ["tag.yaml", "python/object"]),
        ("train {bad}/unknown_tag.yaml", ["unknown_tag.yaml", "sea"]),
        ("train -p base_lr=.inf", ["base_lr", "inf"]),
        ("train -p 'model_args={widht: 1.0}' -p steps=1", ["nf_resnet_tiny", "widht", "width"]),
        ("train -p device=tpu -p steps=1", ["device", "tpu", "cpu"]),
        ("train -p device=cuda:99 -p steps=1", ["device", "cuda:99"]),
        ("train -p steps 3", ["-p", "steps=3"]),
        ("train lr=0.1", ["lr=0.1", "-p"]),
        ("train -p data=~nobody-here/x -p steps=1", ["~nobody-here/x"]),
        ("check nf_resnet_tiny --device tpu", ["device", "tpu", "cpu"]),
        ("bench agcc", ["agcc", "agc_step"]),
        ("bench --device tpu", ["tpu", "cpu"]),
        ("bench --rounds 0", ["--rounds", "1"]),
        ("doctor --fixx", ["--fixx"]),
        ("doctor now", ["now"]),
        ("ui --host no.such.host.invalid", ["no.such.host.invalid", "--host"]),
    ),
    *cases(
        "too large",
        ("train {bad}/bomb.yaml", ["bomb.yaml"]),
        ("train {bad}/digits.yaml", ["digits.yaml"]),
        ("train {bad}/huge.yaml", ["huge.yaml", NINES]),
        ("train {bad}/large.yaml", ["large.yaml"]),
        ("train {bad}/long_name.yaml", ["TrainConfig"]),
        (f"train -p {'m' * 300}=1", ["TrainConfig"]),
        (f"train -p steps={NINES}", ["steps", NINES]),
        (f"train -p batch_size={NINES} -p steps=1", ["batch_size", NINES]),
        (f"train -p seed={'9' * 5000} -p steps=1", ["seed"]),
        ("train -p batch_size=9999 -p steps=1", ["batch_size", "9999", "3500"]),
        (f"train {'n' * 300}.yaml", [f"{'n' * 300}.yaml"]),
        ("ui --port 70000", ["--port", "70000", "65535"]),
        ("lab --port 70000", ["--port", "70000", "65535"]),
    ),
    *cases(
        "too deep",
        ("train {bad}/deep.yaml", ["deep.yaml"]),
        ("train {bad}/recursive.yaml", ["recursive.yaml"]),
        ("train -p 'model_args=&x {a: *x}' -p steps=1", ["model_args"]),
        (f"train -p 'clip_exempt={'[' * 3000}' -p steps=1", ["clip_exempt"]),
    ),
    *cases(
        "damaged",
        ("train {bad}/open.yaml", ["open.yaml", "YAML"]),
        ("train {bad}/binary.yaml", ["binary.yaml", "UTF-8"]),
        ("train {bad}/null_byte.yaml", ["null_byte.yaml"]),
        ("train -p steps=[", ["steps", "YAML"]),
        ("check nf_resnet_tiny -p width=[", ["width", "YAML"]),
    ),
    *cases(
        "unreadable",
        ("train {bad}/folder.yaml", ["folder.yaml"]),
        ("train {bad}/pipe.yaml", ["pipe.yaml"]),
        ("train {bad}/loop.yaml", ["loop.yaml"]),
        (f"{SAVED} {{bad}}/folder.safetensors", ["folder.safetensors"]),
        ("compare nothing --csv {bad}/empty", ["{bad}/empty", ".csv"]),
        ("compare nothing --csv {bad}/file/t.csv", ["file/t.csv"]),
        ("compare nothing --curves {bad}/file/c.png", ["file/c.png"]),
        ("claims --csv {bad}/file/t.csv", ["file/t.csv"]),
    ),
]  # fmt: skip
