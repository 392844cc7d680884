"""NFNet and NF-ResNet once more, slowly and literally, in float64: written from the equations, not from the
implementation.

Everything is where the paper has it: gamma after every activation, then 1 / beta; no constant is folded anywhere.
Convolution is a sum over taps of an explicitly padded map. `weights` maps the parameter names of our models to
tensors.
"""

import math

import torch

GAMMA = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571, "silu": 1.7881293296813965}
G = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def same_pads(n, k, s):
    """TensorFlow's SAME: (before, after) for one axis."""
    out = math.ceil(n / s)
    total = max((out - 1) * s + k - n, 0)
    return total // 2, total - total // 2


def pad(x, k, s, value=0.0):
    (top, bottom), (left, right) = same_pads(x.shape[2], k, s), same_pads(x.shape[3], k, s)
    out = torch.full(
        (x.shape[0], x.shape[1], x.shape[2] + top + bottom, x.shape[3] + left + right), value, dtype=x.dtype
    )
    out[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return out


def taps(x, k, s, value=0.0):
    """[((i, j), the map that tap (i, j) sees)] with the output's height and width."""
    height, width = math.ceil(x.shape[2] / s), math.ceil(x.shape[3] / s)
    padded = pad(x, k, s, value)
    return [
        ((i, j), padded[:, :, i : i + (height - 1) * s + 1 : s, j : j + (width - 1) * s + 1 : s])
        for i in range(k)
        for j in range(k)
    ]


def conv(x, w, bias, s=1, groups=1):
    out = 0
    for (i, j), seen in taps(x, w.shape[2], s):
        per_group = []
        for g in range(groups):
            rows = slice(g * w.shape[0] // groups, (g + 1) * w.shape[0] // groups)
            cols = slice(g * x.shape[1] // groups, (g + 1) * x.shape[1] // groups)
            per_group.append(torch.einsum("nchw,oc->nohw", seen[:, cols], w[rows, :, i, j]))
        out = out + torch.cat(per_group, dim=1)
    return out + bias[None, :, None, None]


def standardized(w, gain):
    """gain * (W - mean) / sqrt(max(N var, 1e-4)) per output channel, biased variance, N the fan-in."""
    rows = []
    for o in range(w.shape[0]):
        n = w[o].numel()
        mean = w[o].sum() / n
        var = ((w[o] - mean) ** 2).sum() / n
        scale = gain[o] / torch.sqrt(torch.clamp(var * n, min=1e-4))
        rows.append(w[o] * scale - mean * scale)
    return torch.stack(rows)


def avg_pool(x):
    """2 x 2, stride 2, SAME: at an odd border the mean of the real pixels only."""
    ones = torch.ones_like(x)
    return sum(t for _, t in taps(x, 2, 2)) / sum(t for _, t in taps(ones, 2, 2))


def max_pool(x):
    return torch.stack([t for _, t in taps(x, 3, 2, value=-math.inf)]).amax(0)


def forward(
    weights, x, *, family, depth, stem_strides, pool, activation, alpha=0.2, groups_of=None, se=True, two_convs=True
):
    """(logits, pooled features, trunk after each block) for weights named as our models name them."""

    def ws(name, x, s=1, groups=1):
        return conv(
            x, standardized(weights[f"{name}.weight"], weights[f"{name}.gain"]), weights[f"{name}.bias"], s, groups
        )

    def act(x):
        return G[activation](x) * GAMMA[activation]

    if family == "nfnet":
        h = ws("stem.0", x, stem_strides[0])
        for i in (1, 2, 3):
            h = ws(f"stem.{i}", act(h), stem_strides[i])
    else:
        h = ws("stem", x, stem_strides[0])
        h = max_pool(h) if pool else h

    trunk, s, index = [h], 1.0, 0
    for stage, blocks in enumerate(depth):
        for i in range(blocks):
            b, stride = f"blocks.{index}", 2 if stage > 0 and i == 0 else 1
            a = act(h) * (1 / s)
            if i > 0:
                shortcut = h
            elif family == "nfnet":
                shortcut = ws(f"{b}.conv_shortcut", avg_pool(a) if stride == 2 else a)
            else:
                shortcut = ws(f"{b}.conv_shortcut", a, stride)
            groups = groups_of(weights[f"{b}.conv1.weight"].shape[0]) if groups_of else 1
            r = ws(f"{b}.conv0", a)
            r = ws(f"{b}.conv1", act(r), stride, groups)
            if family == "nfnet" and two_convs:
                r = ws(f"{b}.conv1b", act(r), 1, groups)
            r = ws(f"{b}.conv2", act(r))
            if se:
                p = r.mean((2, 3))
                p = (
                    p @ weights[f"{b}.squeeze_excite.reduce.weight"].T + weights[f"{b}.squeeze_excite.reduce.bias"]
                ).clamp(min=0)
                p = p @ weights[f"{b}.squeeze_excite.expand.weight"].T + weights[f"{b}.squeeze_excite.expand.bias"]
                r = r * 2 * (1 / (1 + torch.exp(-p)))[:, :, None, None]
            h = r * weights[f"{b}.skip_gain"] * alpha + shortcut
            trunk.append(h)
            if i == 0:
                s = 1.0
            s = math.sqrt(s**2 + alpha**2)
            index += 1

    if family == "nfnet":
        h = ws("final_conv", h)
    features = act(h).mean((2, 3))
    return features @ weights["linear.weight"].T + weights["linear.bias"], features, trunk
