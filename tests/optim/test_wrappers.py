"""Tests of AGC around optimizers that wrap another one. Evidence: gradients equal those clipped by hand, no hook stays.

The wrappers imitate the ways in which well-known libraries hold the inner optimizer.
"""

import copy
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from workbench.errors import WorkbenchError
from workbench.optim import AGC, clip_grad_agc_, suggest_clip


class Delegating(Optimizer):
    """Groups and state are properties, as in Accelerate. It does not call `Optimizer.__init__`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    def __getstate__(self):
        return vars(self)

    def __setstate__(self, state):
        vars(self).update(state)


class Sharing(Optimizer):
    """Groups are shared, as in Lookahead. Its own state has hooks, but its `step` runs none."""

    def __init__(self, base_optimizer):
        self._optimizer_state_dict_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._base_optimizer = base_optimizer
        self.param_groups, self.defaults = base_optimizer.param_groups, base_optimizer.defaults
        self.state = defaultdict(dict)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)

    def state_dict(self):
        return self._base_optimizer.state_dict()

    def load_state_dict(self, state):
        self._base_optimizer.load_state_dict(state)
        self.param_groups = self._base_optimizer.param_groups


class Averaging(Optimizer):
    """It changes the gradients before the inner step, as Opacus does. It has hooks, but the inner optimizer steps."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups = inner.param_groups
        self.inner = {"only": inner}

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = 1000 * p.grad
        return self.inner["only"].step()


class TwoStep(Optimizer):
    """Training calls `first` and `second`, never `step`, as in other libraries' SAM."""

    def __init__(self, params, base, **settings):
        super().__init__(params, settings)
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def second(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        raise NotImplementedError


def huge(module):
    for p in module.parameters():
        p.grad = torch.full_like(p, 100.0)


def clipped_by_hand(module, clip):
    module = copy.deepcopy(module)
    huge(module)
    clip_grad_agc_(module.parameters(), clip=clip)
    return [p.grad for p in module.parameters()]


def equal(module, expected):
    return all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), expected, strict=True))


def sgd(module, **settings):
    return torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9, **settings)


WRAPPERS = {
    "delegating": Delegating,
    "sharing": Sharing,
    "averaging": Averaging,
    "two wrappers": lambda inner: Delegating(Sharing(inner)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_inner_optimizer_is_hooked_and_released(wrap):
    module = nn.Linear(4, 3)
    expected, inner = clipped_by_hand(module, 0.02), sgd(module)
    wrapper = wrap(inner)
    agc = AGC(wrapper, clip=0.02)
    huge(module)
    wrapper.step()
    assert agc.optimizer is wrapper and agc.steps == 1 and agc.stats.clipped_share() == 1.0
    for p, g in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
    agc.remove()
    huge(module)
    inner.step()
    assert all((p.grad == 100).all() for p in module.parameters())
    assert not any(
        hooks for layer in (wrapper, inner) for name, hooks in vars(layer).items() if name.endswith("_hooks")
    )


@pytest.mark.parametrize("wrap", [Delegating, Sharing])
def test_closures_and_states_pass_through_a_wrapper(wrap):
    module = nn.Linear(4, 3)
    expected = clipped_by_hand(module, 0.02)
    wrapper = wrap(sgd(module))
    agc = AGC(wrapper, clip=0.02)
    wrapper.step(lambda: huge(module))
    assert equal(module, expected)
    state = wrapper.state_dict()
    agc.steps = 0
    wrapper.load_state_dict(state)
    assert agc.steps == 1
    wrapper.step(lambda: huge(module))
    assert equal(module, expected) and agc.steps == 2


def test_an_optimizer_whose_step_is_never_called_is_clipped_where_its_base_steps():
    module = nn.Linear(4, 3)
    expected = clipped_by_hand(module, 0.02)
    sam = TwoStep(module.parameters(), torch.optim.SGD, lr=0.0)
    agc = AGC(sam, clip=0.02)
    huge(module)
    sam.second()
    assert equal(module, expected) and agc.steps == 1


def test_a_copied_wrapper_clips():
    module = nn.Linear(4, 3)
    original = (module, Delegating(sgd(module)))
    module, wrapper, agc = copy.deepcopy((*original, AGC(original[1], clip=0.02)))
    expected = clipped_by_hand(module, 0.02)
    huge(module)
    wrapper.step()
    assert equal(module, expected) and agc.steps == 1


def test_an_optimizer_in_an_attribute_that_trains_something_else_is_left_alone():
    module, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    expected, optimizer = clipped_by_hand(module, 0.02), sgd(module)
    optimizer.teacher = sgd(teacher)
    AGC(optimizer, clip=0.02)
    for part in (module, teacher):
        huge(part)
    optimizer.step(), optimizer.teacher.step()
    assert equal(module, expected) and (teacher.weight.grad == 100).all()


def without_hooks(module):
    class Bare(Optimizer):
        def __init__(self, params):
            self.param_groups, self.state, self.defaults = [{"params": list(params)}], {}, {}

        def step(self, closure=None):
            pass

    return Bare(module.parameters())


def half_hooked(module):
    bare = without_hooks(module)
    bare._optimizer_step_pre_hooks, bare._optimizer_state_dict_post_hooks = OrderedDict(), OrderedDict()
    return bare


def several(module):
    both = without_hooks(module)
    both.parts = [torch.optim.SGD([module.weight], lr=0.1), torch.optim.AdamW([module.bias])]
    return both


class Fabric:
    """A wrapper that is no torch.optim.Optimizer, as in Lightning."""

    def __init__(self, optimizer):
        self._optimizer = optimizer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_hooks, "Bare.*clip_grad_agc_"),
        (half_hooked, "Bare.*clip_grad_agc_"),
        (lambda module: Delegating(without_hooks(module)), "Bare.*clip_grad_agc_"),
        (lambda module: Sharing(without_hooks(module)), "Bare.*clip_grad_agc_"),
        (several, "Bare.*SGD and AdamW"),
        (lambda module: Delegating(torch.optim.LBFGS(module.parameters())), "LBFGS"),
        (lambda module: Fabric(sgd(module)), "Fabric.*SGD.*`_optimizer`"),
        (lambda module: AGC(sgd(module)), "AGC.*SGD.*`optimizer`"),
        (lambda module: module.parameters(), "generator"),
    ],
)
def test_an_optimizer_that_cannot_be_hooked_is_named_and_keeps_no_hook(make, words):
    optimizer = make(nn.Linear(4, 3))
    with pytest.raises(WorkbenchError, match=words):
        AGC(optimizer, clip=0.02)
    layers = [optimizer, *(v for v in getattr(optimizer, "__dict__", {}).values() if isinstance(v, Optimizer))]
    if not isinstance(optimizer, AGC):
        assert not any(v for layer in layers for k, v in getattr(layer, "__dict__", {}).items() if k.endswith("_hooks"))


@pytest.mark.parametrize("wrap", [Delegating, Sharing, Averaging])
def test_suggest_clip_uses_the_inner_optimizer(wrap):
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(10)]
    inner = torch.optim.SGD(module.parameters(), lr=0.1)
    expected = suggest_clip(module, batches, inner, steps=8, progress=False)
    assert suggest_clip(module, batches, wrap(inner), steps=8, progress=False) == expected
