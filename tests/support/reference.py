"""A second implementation of the families, AGC and its optimizer: slow, literal and in float64.

It is written from the equations, not from the implementation. Everything is where the paper has it: gamma after every
activation, then 1 / beta. No constant is folded. Convolution is a sum over taps of an explicitly padded map. `weights`
maps the parameter names of our models to tensors.
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
    """Padding (before, after) of one axis in TensorFlow's SAME mode."""
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
    """List ((i, j), the map that tap (i, j) sees). The maps have the output's height and width."""
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
    """gain * (W - mean) / sqrt(max(N var, 1e-4)) per output channel. N is the fan-in, and var is biased."""
    rows = []
    for o in range(w.shape[0]):
        n = w[o].numel()
        mean = w[o].sum() / n
        var = ((w[o] - mean) ** 2).sum() / n
        scale = gain[o] / torch.sqrt(torch.clamp(var * n, min=1e-4))
        rows.append(w[o] * scale - mean * scale)
    return torch.stack(rows)


def avg_pool(x):
    """Average over 2 x 2 with stride 2 and SAME padding. At an odd border only real pixels count."""
    ones = torch.ones_like(x)
    return sum(t for _, t in taps(x, 2, 2)) / sum(t for _, t in taps(ones, 2, 2))


def max_pool(x):
    return torch.stack([t for _, t in taps(x, 3, 2, value=-math.inf)]).amax(0)


class Net:
    """Weights by the names of our models, and the operations of a forward pass."""

    def __init__(self, weights, activation, gamma=None):
        self.weights = weights
        self.g, self.gamma = G[activation], GAMMA[activation] if gamma is None else gamma

    def act(self, x):
        return self.g(x) * self.gamma

    def has(self, name):
        return f"{name}.weight" in self.weights

    def ws(self, name, x, s=1, groups=1):
        """A convolution with scaled weight standardisation."""
        w = self.weights
        return conv(x, standardized(w[f"{name}.weight"], w[f"{name}.gain"]), w[f"{name}.bias"], s, groups)

    def plain(self, name, x, s=1):
        w = self.weights[f"{name}.weight"]
        return conv(x, w, self.weights.get(f"{name}.bias", torch.zeros(w.shape[0], dtype=w.dtype)), s)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def squeeze_excite(self, name, x):
        p = self.linear(f"{name}.reduce", x.mean((2, 3))).clamp(min=0)
        return (1 / (1 + torch.exp(-self.linear(f"{name}.expand", p))))[:, :, None, None]

    def norm(self, name, x, training):
        """BatchNorm. In evaluation the running mean is 0 and the running variance 1."""
        mean, var = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[None, :, None, None]) / torch.sqrt(var + 1e-5)[None, :, None, None]
        w = self.weights
        return x * w[f"{name}.weight"][None, :, None, None] + w[f"{name}.bias"][None, :, None, None]


def strides(depth, first):
    """Yield (index of the block in the network, index in its stage, stride)."""
    index = 0
    for stage, blocks in enumerate(depth):
        for i in range(blocks):
            yield index, i, (2 if stage or first == 2 else 1) if i == 0 else 1
            index += 1


def nf(weights, x, *, family, depth, activation, stem_strides=(2,), pool=False, alpha=0.2, group_size=None, se=True,
       two_convs=True, **_):  # fmt: skip
    """NFNet, NF-ResNet and NF-RegNet: (logits, pooled features, trunk after each block)."""
    net = Net(weights, activation)
    if family == "nfnet":
        h = net.ws("stem.0", x, stem_strides[0])
        for i in (1, 2, 3):
            h = net.ws(f"stem.{i}", net.act(h), stem_strides[i])
    else:
        h = net.ws("stem", x, stem_strides[0])
        h = max_pool(h) if pool else h

    trunk, s = [h], 1.0
    for index, i, stride in strides(depth, first=2 if family == "nf_regnet" else 1):
        b = f"blocks.{index}"
        a = net.act(h) * (1 / s)
        out_channels = weights[f"{b}.conv2.weight"].shape[0]
        if stride == 1 and h.shape[1] == out_channels:
            shortcut = h
        elif family == "nf_resnet":
            shortcut = net.ws(f"{b}.conv_shortcut", a, stride)
        else:
            shortcut = net.ws(f"{b}.conv_shortcut", avg_pool(a) if stride == 2 else a)
        groups = weights[f"{b}.conv1.weight"].shape[0] // group_size if group_size else 1
        r = net.ws(f"{b}.conv0", a)
        r = net.ws(f"{b}.conv1", net.act(r), stride, groups)
        if family == "nfnet" and two_convs:
            r = net.ws(f"{b}.conv1b", net.act(r), 1, groups)
        if family == "nf_regnet" and se:
            r = r * 2 * net.squeeze_excite(f"{b}.squeeze_excite", r)
        r = net.ws(f"{b}.conv2", net.act(r))
        if family != "nf_regnet" and se:
            r = r * 2 * net.squeeze_excite(f"{b}.squeeze_excite", r)
        h = r * weights[f"{b}.skip_gain"] * alpha + shortcut
        trunk.append(h)
        if i == 0:
            s = 1.0
        s = math.sqrt(s**2 + alpha**2)

    if family != "nf_resnet":
        h = net.ws("final_conv", h)
    features = net.act(h).mean((2, 3))
    return net.linear("linear", features), features, trunk


def skipinit(weights, x, *, depth, activation, **_):
    """Plain convolutions, and one scalar per branch."""
    net = Net(weights, activation, gamma=1.0)
    h = max_pool(net.plain("stem", x, 2))
    trunk = [h]
    for index, _i, stride in strides(depth, first=1):
        b = f"blocks.{index}"
        a = net.act(h)
        shortcut = net.plain(f"{b}.conv_shortcut", a, stride) if net.has(f"{b}.conv_shortcut") else h
        r = net.plain(f"{b}.conv0", a)
        r = net.plain(f"{b}.conv1", net.act(r), stride)
        r = net.plain(f"{b}.conv2", net.act(r))
        h = r * weights[f"{b}.skip_gain"] + shortcut
        trunk.append(h)
    features = net.act(h).mean((2, 3))
    return net.linear("linear", features), features, trunk


def fixup(weights, x, *, depth, activation, **_):
    """Post-activation, with scalar biases around every convolution."""
    net = Net(weights, activation, gamma=1.0)
    h = max_pool(net.act(net.plain("stem", x, 2) + weights["bias1"]))
    trunk = [h]
    for index, _i, stride in strides(depth, first=1):
        b = f"blocks.{index}"
        bias = {name: weights[f"{b}.bias{name}"] for name in ("1a", "1b", "2a", "2b", "3a", "3b")}
        h = h + bias["1a"]
        shortcut = net.plain(f"{b}.conv_shortcut", h, stride) if net.has(f"{b}.conv_shortcut") else h
        r = net.act(net.plain(f"{b}.conv0", h) + bias["1b"])
        r = net.act(net.plain(f"{b}.conv1", r + bias["2a"], stride) + bias["2b"])
        r = net.plain(f"{b}.conv2", r + bias["3a"]) * weights[f"{b}.scale"] + bias["3b"]
        h = net.act(r + shortcut)
        trunk.append(h)
    features = h.mean((2, 3))
    return net.linear("linear", features + weights["bias2"]), features, trunk


def resnet(weights, x, *, depth, activation, training, **_):
    """BatchNorm before every activation. The first block of every stage has a projection."""
    net = Net(weights, activation, gamma=1.0)
    h = max_pool(net.plain("stem", x, 2))
    trunk = [h]
    for index, i, stride in strides(depth, first=1):
        b = f"blocks.{index}"
        a = net.act(net.norm(f"{b}.norm0", h, training))
        shortcut = net.plain(f"{b}.conv_shortcut", a, stride) if i == 0 else h
        r = net.plain(f"{b}.conv0", a)
        r = net.plain(f"{b}.conv1", net.act(net.norm(f"{b}.norm1", r, training)), stride)
        r = net.plain(f"{b}.conv2", net.act(net.norm(f"{b}.norm2", r, training)))
        h = r + shortcut
        trunk.append(h)
    features = net.act(net.norm("final_norm", h, training)).mean((2, 3))
    return net.linear("linear", features), features, trunk


def forward(weights, x, *, family, **description):
    """(logits, pooled features, [stem, trunk after each block]) of a family with these weights."""
    special = {"skipinit": skipinit, "fixup": fixup, "resnet": resnet}.get(family)
    return special(weights, x, **description) if special else nf(weights, x, family=family, **description)


def signal(trunk):
    """List (average squared channel mean, average channel variance) of maps (N, C, H, W), by loops."""
    rows = []
    for h in trunk:
        channels = [h[:, c].flatten() for c in range(h.shape[1])]
        means = [c.sum() / len(c) for c in channels]
        variances = [((c - m) ** 2).sum() / len(c) for c, m in zip(channels, means, strict=True)]
        rows.append((sum(m**2 for m in means) / len(means), sum(variances) / len(variances)))
    return rows


def unit_norms(w):
    """AGC's norms, in the shape of `w`. A scalar or vector has one norm, others have one per index of dimension 0."""
    if sum(n > 1 for n in w.shape) <= 1:
        return torch.sqrt((w**2).sum()).expand_as(w)
    rows = [torch.sqrt((row**2).sum()).expand_as(row) for row in w]
    return torch.stack(rows)


def sgd_agc_step(weights, gradients, momenta, *, lr, clip, weight_decay, momentum=0.9, eps=1e-3):
    """One step of the authors' optimizer: clip, then coupled decay, then Nesterov.

    Replaces the tensors in `weights` and `momenta`. The classifier's weight is not clipped. Gains, biases and skip
    gains are not decayed.
    """
    for name, w in weights.items():
        g = gradients[name]
        if name != "linear.weight":
            limit = clip * unit_norms(w).clamp(min=eps)
            norm = unit_norms(g)
            g = torch.where(norm > limit, g * (limit / norm.clamp(min=1e-6)), g)
        if not name.endswith(("gain", "bias")):
            g = g + weight_decay * w
        momenta[name] = momentum * momenta.get(name, torch.zeros_like(w)) + g
        weights[name] = w - lr * (g + momentum * momenta[name])
