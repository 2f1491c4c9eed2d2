"""Checkpoints laid out as MACE and NequIP write them, read by the code of docs/migrating.md.

Neither is installed here: modules of their names do what that code asks of them.
"""

import argparse
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amsgrad_jax import interop
from tests.test_pages import blocks
from tests.variants import enable_x64

torch = pytest.importorskip("torch", reason="these tests read PyTorch's checkpoints")

STEPS = 3


class Potential(torch.nn.Module):
    """Parts of MACE's names and of equal shapes, so that a wrong order shows in values only."""

    def __init__(self):
        super().__init__()
        part = lambda *names: torch.nn.ModuleDict({name: torch.nn.Linear(3, 3) for name in names})
        self.node_embedding = part("linear")
        self.interactions = torch.nn.ModuleList([part("linear_up", "linear") for _ in range(2)])
        self.products = part("frozen", "linear")
        self.readouts = part("linear")


def groups_of(model):
    """MACE's groups: decayed weights of all interactions come before what is not decayed."""
    named = dict(model.interactions.named_parameters())
    decayed = [name for name in named if "linear.weight" in name]
    return [
        {"name": "embedding", "params": model.node_embedding.parameters(), "weight_decay": 0.0},
        {"name": "interactions_decay", "params": [named[name] for name in decayed]},
        {
            "name": "interactions_no_decay",
            "params": [tensor for name, tensor in named.items() if name not in decayed],
            "weight_decay": 0.0,
        },
        {"name": "products", "params": model.products.parameters()},
        {"name": "readouts", "params": model.readouts.parameters(), "weight_decay": 0.0},
    ]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=5e-7, amsgrad=True)


def trained(parameters_of):
    """A model and its optimizer after some steps, and the parameters in JAX."""
    torch.manual_seed(0)
    model = Potential().double()
    model.products["frozen"].requires_grad_(False)
    optimizer = adam(parameters_of(model))
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(tensor.square().sum() for tensor in model.parameters()).backward()
        optimizer.step()
    params = {
        name: jnp.array(tensor.detach().numpy())
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }
    return model, optimizer, params


def code(name):
    """A function that the page defines."""
    (block,) = [block for block in blocks("docs/migrating.md") if f"def {name}(" in block.source]
    namespace = {}
    exec(block.compile(), namespace)
    return namespace[name]


def provide(monkeypatch, **modules):
    """Modules with these contents, under names with __ for a dot."""
    for name, contents in modules.items():
        module = types.ModuleType(name.replace("__", "."))
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def assert_goes_on(optimizer, state, params, model, theirs):
    """The moments are those of the parameter of that name, and the next step is the same."""
    moments = interop.get_moments(state, params)
    assert int(moments.count) == STEPS
    named = dict(model.named_parameters())
    for name in params:
        np.testing.assert_array_equal(moments.mu[name], theirs.state[named[name]]["exp_avg"])
    gradients = jax.tree.map(lambda param: 2 * param, params)
    updates, _ = optimizer.update(gradients, state, params)
    theirs.zero_grad()
    sum(tensor.square().sum() for tensor in model.parameters()).backward()
    theirs.step()
    for name, param in params.items():
        np.testing.assert_allclose(param + updates[name], named[name].detach(), rtol=1e-12)


@pytest.fixture(autouse=True)
def in_float64():
    with enable_x64():
        yield


def test_mace(tmp_path, monkeypatch):
    model, theirs, params = trained(groups_of)
    file = tmp_path / "alloy_run-123_epoch-2.pt"
    torch.save({"model": model.state_dict(), "optimizer": theirs.state_dict()}, file)
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    provide(
        monkeypatch,
        mace={},
        mace__tools={"build_default_arg_parser": lambda: parser},
        mace__tools__scripts_utils={
            "get_params_options": lambda arguments, model: groups_of(model),
            "get_optimizer": lambda arguments, groups: adam(groups),
        },
    )
    optimizer, state = code("from_mace")(file, model, params)
    assert_goes_on(optimizer, state, params, model, theirs)


def test_nequip(tmp_path, monkeypatch):
    model, theirs, params = trained(lambda model: model.parameters())
    model = torch.nn.ModuleDict({"sole_model": model})
    params = {f"sole_model.{name}": param for name, param in params.items()}
    file = tmp_path / "last.ckpt"
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [theirs.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"model": {"_target_": "nequip.model.NequIPGNNModel"}},
    }
    torch.save(content, file)
    loaded = types.SimpleNamespace(model=model)
    module = types.SimpleNamespace(load_from_checkpoint=lambda *_, **__: loaded)
    provide(
        monkeypatch,
        nequip={},
        nequip__train={"EMALightningModule": module},
        nequip__utils={},
        nequip__utils__global_state={"set_global_state": lambda: None},
    )
    optimizer, state = code("from_nequip")(file, params)
    assert_goes_on(optimizer, state, params, model, theirs)
