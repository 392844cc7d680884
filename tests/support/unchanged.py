"""A check that a measurement does not change a model."""

import contextlib

import torch


@contextlib.contextmanager
def unchanged(model):
    """Assert that weights, buffers, gradients, modes, hooks and torch's random state do not change."""
    tensors, settings = _tensors(model), _settings(model)
    yield
    after = _tensors(model)
    assert after.keys() == tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, after[name])] == []
    assert _settings(model) == settings


def _tensors(model):
    grads = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.clone() for name, x in {**model.state_dict(), **grads, "random": torch.get_rng_state()}.items()}


def _settings(model):
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return modules, [p.requires_grad for p in model.parameters()]
