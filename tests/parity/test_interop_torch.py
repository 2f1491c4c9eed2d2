"""Training goes on in JAX where PyTorch stopped, and in PyTorch where JAX stopped."""

import argparse
import copy
import datetime
import functools
import importlib
import pathlib
import pickle
import re
import traceback
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import interop
from tests.variants import enable_x64

torch = pytest.importorskip("torch", reason="these tests read and write PyTorch's checkpoints")

N = 100
# Weights decay, the rest does not; one weight is square, so that only values tell its axes.
SHAPES = {
    "conv.weight": (4, 3, 2, 5),
    "conv.bias": (4,),
    "dense.weight": (5, 3),
    "square.weight": (3, 3),
    "temperature": (),
}
GROUPS = (
    dict(names=[n for n in SHAPES if "weight" in n], lr=0.01, weight_decay=0.1),
    dict(names=["conv.bias", "temperature"], lr=0.003, betas=(0.8, 0.99), eps=1e-6),
)
HOW = dict(
    rename=lambda name: name.replace(".", "/").replace("weight", "kernel"),
    transposes=interop.flax_transposes,
)


@pytest.fixture(autouse=True)
def double():
    with enable_x64(True):
        yield


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}


def to_jax(tensors):
    """A nested dict in Flax's layout, by other means than the tested ones."""
    tree = {"conv": {}, "dense": {}, "square": {}}
    for name, value in tensors.items():
        if name == "conv.weight":
            value = np.moveaxis(value, (0, 1), (3, 2))
        elif name.endswith("weight"):
            value = value.T
        layer, _, kind = name.rpartition(".")
        (tree[layer] if layer else tree)[kind.replace("weight", "kernel")] = jnp.asarray(value)
    return tree


def torch_optimizer(tensors, factory="Adam", **options):
    groups = [
        {
            "params": [(name, tensors[name]) for name in group["names"]],
            **{option: value for option, value in group.items() if option != "names"},
        }
        for group in GROUPS
    ]
    defaults = {"amsgrad": True, "weight_decay": 0.0} | options
    return getattr(torch.optim, factory)(groups, **defaults)


def torch_steps(tensors, optimizer, first, count):
    for t in range(first, first + count):
        for name, gradient in arrays(t).items():
            tensors[name].grad = torch.tensor(gradient, dtype=tensors[name].dtype)
        optimizer.step()


def jax_steps(params, optimizer, state, first, count):
    if not count:
        return params, state
    gradients = [to_jax(arrays(t)) for t in range(first, first + count)]

    def step(carry, gradient):
        updates, state = optimizer.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    return jax.jit(lambda *carry: jax.lax.scan(step, carry, stacked)[0])(params, state)


def minimise(loss, optimizer, params, state, steps):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def tensors_at_start(dtype=torch.float64):
    return {
        name: torch.tensor(array, dtype=dtype, requires_grad=True)
        for name, array in arrays(-1 % 2**32).items()
    }


def values(tensors):
    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy().copy()
        for name, t in tensors.items()
    }


def checkpoint(steps=3, factory="Adam", dtype=torch.float64, **options):
    """A state dict after some steps, and the parameters here."""
    tensors = tensors_at_start(dtype)
    optimizer = torch_optimizer(tensors, factory, **options)
    torch_steps(tensors, optimizer, 0, steps)
    return copy.deepcopy(optimizer.state_dict()), to_jax(values(tensors))


def assert_close(got, expected, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, expected)


def assert_same(got, expected):
    """Equal state dicts, bit by bit, in dtypes and containers, too."""
    assert type(got) is type(expected)
    if isinstance(got, dict):
        assert got.keys() == expected.keys()
        for key in got:
            assert_same(got[key], expected[key])
    elif isinstance(got, list | tuple):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
    elif isinstance(got, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    else:
        assert got == expected


@pytest.mark.parametrize("steps", [0, 1, 7, 300])
@pytest.mark.parametrize("factory", ["Adam", "AdamW"])
def test_jax_continues(factory, steps):
    tensors = tensors_at_start()
    theirs = torch_optimizer(tensors, factory)
    torch_steps(tensors, theirs, 0, steps)
    params = to_jax(values(tensors))

    state, groups = interop.from_torch(theirs, params, **HOW)
    assert int(state.count) == steps
    optimizer = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(optimizer.init(params), state)
    params, _ = jax_steps(params, optimizer, opt_state, steps, N)

    torch_steps(tensors, theirs, steps, N)
    assert_close(params, to_jax(values(tensors)))


@pytest.mark.parametrize("steps", [0, 1, 7, 300])
@pytest.mark.parametrize("factory", ["Adam", "AdamW"])
def test_torch_continues(factory, steps):
    tensors = tensors_at_start()
    params = to_jax(values(tensors))
    theirs = torch_optimizer(tensors, factory)
    optimizer = interop.optimizer_of(interop.from_torch(theirs, params, **HOW).groups, params)
    params, state = jax_steps(params, optimizer, optimizer.init(params), 0, steps)

    torch_steps(tensors, torch_optimizer(tensors, factory), 0, steps)  # only for its parameters
    theirs.load_state_dict(interop.to_torch(state, params, theirs, **HOW))
    torch_steps(tensors, theirs, steps, N)

    params, _ = jax_steps(params, optimizer, state, steps, N)
    assert_close(params, to_jax(values(tensors)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factory", ["Adam", "AdamW"])
@pytest.mark.parametrize("steps", [0, 5])
def test_round_trip_keeps_every_bit(steps, factory, dtype):
    state_dict, params = checkpoint(steps, factory, dtype)
    before = copy.deepcopy(state_dict)
    state, _ = interop.from_torch(state_dict, params, **HOW)
    assert_same(interop.to_torch(state, params, state_dict, **HOW), before)
    assert_same(state_dict, before)


def test_dtypes_are_those_of_our_state():
    state_dict, params = checkpoint(dtype=torch.bfloat16)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    for tree in (params, half):
        state, _ = interop.from_torch(state_dict, tree, **HOW)
        init = amsgrad_jax.scale_by_amsgrad().init(tree)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
            lambda a: (a.shape, a.dtype), init
        )
    for dtype in (np.float16, np.float32):
        assert_close(interop.from_torch(numpy_of(state_dict, dtype), half, **HOW).state, state, 0.1)


def numpy_of(node, dtype):
    if isinstance(node, dict):
        return {key: numpy_of(value, dtype) for key, value in node.items()}
    return node.double().numpy().astype(dtype) if isinstance(node, torch.Tensor) else node


def test_a_module_with_named_parameters(tmp_path):
    """What a user does: a module, its parameters and its optimizer in one file."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    module = module.double()
    optimizer = torch.optim.AdamW(module.named_parameters(), lr=0.01, amsgrad=True)
    x = torch.randn(16, 4, dtype=torch.float64)

    torch_train(module, optimizer, 5, x)
    contents = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 5}
    torch.save(contents, tmp_path / "run.pt")

    params = {
        "0": {"kernel": jnp.asarray(module[0].weight.detach().numpy().T.copy())},
        "2": {"kernel": jnp.asarray(module[2].weight.detach().numpy().T.copy())},
    }
    for layer in ("0", "2"):
        params[layer]["bias"] = jnp.asarray(module[int(layer)].bias.detach().numpy().copy())

    def loss(params):
        hidden = jnp.tanh(x.numpy() @ params["0"]["kernel"] + params["0"]["bias"])
        return jnp.mean((hidden @ params["2"]["kernel"] + params["2"]["bias"]) ** 2)

    state, groups = interop.from_torch(tmp_path / "run.pt", params, key="optimizer", **HOW)
    ours = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(ours.init(params), state)

    params, opt_state = minimise(loss, ours, params, opt_state, N)
    torch_train(module, optimizer, N, x)
    np.testing.assert_allclose(params["0"]["kernel"].T, module[0].weight.detach(), rtol=1e-10)
    np.testing.assert_allclose(params["2"]["bias"], module[2].bias.detach(), rtol=1e-10)

    torch.save(interop.to_torch(opt_state, params, optimizer, **HOW), tmp_path / "back.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    assert optimizer.state[module[0].weight]["step"] == 5 + N


@pytest.mark.parametrize("option", ["foreach", "fused", "capturable"])
def test_implementations(option):
    if option == "capturable":  # refuses to step on a CPU, but its state is the same
        state_dict, params = checkpoint()
        for group in state_dict["param_groups"]:
            group["capturable"] = True
    else:
        state_dict, params = checkpoint(**{option: True})
    expected = interop.from_torch(checkpoint()[0], params, **HOW)
    got = interop.from_torch(state_dict, params, **HOW)
    assert_close(got.state, expected.state)
    assert got.groups == expected.groups


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor([3.0]), np.int64(3)])
def test_steps_of_all_kinds(step):
    state_dict, params = checkpoint()
    for entry in state_dict["state"].values():
        entry["step"] = step
    assert int(interop.from_torch(state_dict, params, **HOW).state.count) == 3


def test_hyperparameters():
    state_dict, params = checkpoint(factory="AdamW")
    state_dict["param_groups"][0]["lr"] = torch.tensor(0.25)
    weights, rest = interop.from_torch(state_dict, params, **HOW).groups
    assert weights == interop.TorchGroup(
        ("conv/kernel", "dense/kernel", "square/kernel"),
        {"learning_rate": 0.25, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        weight_decay=0.1,
        decoupled=True,
    )
    assert rest.arguments == {"learning_rate": 0.003, "b1": 0.8, "b2": 0.99, "eps": 1e-6}


def test_checkpoints_before_decoupled_weight_decay():
    state_dict, params = checkpoint()
    for group in state_dict["param_groups"]:
        del group["decoupled_weight_decay"]
    with pytest.raises(ValueError, match="group 0 .* decoupled=True for AdamW"):
        interop.from_torch(state_dict, params, **HOW)
    for decoupled in (True, False):
        groups = interop.from_torch(state_dict, params, decoupled=decoupled, **HOW).groups
        assert groups[0].decoupled is decoupled


def test_names_in_order():
    state_dict, params = checkpoint()
    expected = interop.from_torch(state_dict, params, **HOW)
    names = [name for group in state_dict["param_groups"] for name in group.pop("param_names")]
    as_a_generator = (name for name in names)
    with pytest.raises(ValueError, match="group 0 has no param_names: pass names"):
        interop.from_torch(state_dict, params, **HOW)
    for ordered in (names, as_a_generator):
        state, _ = interop.from_torch(state_dict, params, names=ordered, **HOW)
        assert_close(state, expected.state)


def test_mappings_instead_of_functions():
    state_dict, params = checkpoint()
    how = dict(
        rename={name: HOW["rename"](name) for name in SHAPES if "weight" in name},
        transposes={
            "conv/kernel": (2, 3, 1, 0),
            "dense/kernel": (1, 0),
            "square/kernel": [1, 0],
        },
    )
    expected = interop.from_torch(state_dict, params, **HOW)
    state = interop.from_torch(state_dict, params, **how).state
    assert_close(state, expected.state)
    assert_same(interop.to_torch(state, params, state_dict, **how), state_dict)


def test_amsgrad_off():
    state_dict, params = checkpoint(amsgrad=False)
    with pytest.raises(
        ValueError, match="'conv.weight' has no .*amsgrad is off in group 0.*use_nu"
    ):
        interop.from_torch(state_dict, params, **HOW)
    state, _ = interop.from_torch(state_dict, params, without_max="use_nu", **HOW)
    assert_close(state.nu_max, state.nu)
    assert jnp.all(state.nu["conv"]["kernel"] > 0)
    with pytest.raises(ValueError, match="amsgrad off"):
        interop.to_torch(state, params, state_dict, **HOW)
    with pytest.raises(ValueError, match="unknown without_max"):
        interop.from_torch(state_dict, params, without_max="yes", **HOW)


def test_state_is_a_copy():
    tensors = tensors_at_start()
    optimizer = torch_optimizer(tensors)
    torch_steps(tensors, optimizer, 0, 1)
    state, _ = interop.from_torch(optimizer, to_jax(values(tensors)), **HOW)
    before = np.array(state.nu["conv"]["bias"])
    torch_steps(tensors, optimizer, 1, 3)
    np.testing.assert_array_equal(state.nu["conv"]["bias"], before)


# Checkpoints as they lie on disk.


class Blocks(torch.nn.Module):
    """Two equal blocks and a readout; the optimizer has the readout first."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Linear(3, 3)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))
        self.readout = torch.nn.Linear(3, 1)

    def forward(self, x):
        x = torch.tanh(self.embedding(x))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.readout(x)

    def groups(self):
        return [
            {"params": self.readout.parameters(), "lr": 0.01},
            {"params": self.blocks[1].parameters(), "lr": 0.02, "weight_decay": 0.1},
            {"params": self.blocks[0].parameters(), "lr": 0.03},
            {"params": self.embedding.parameters()},
        ]


def model_and_optimizer(frozen=(), steps=4, names=False, **options):
    torch.manual_seed(0)
    model = Blocks().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(frozen) if frozen else True
    parameters = model.named_parameters() if names else model.groups()
    optimizer = torch.optim.Adam(parameters, lr=0.05, **({"amsgrad": True} | options))
    torch_train(model, optimizer, steps)
    return model, optimizer


X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)


def torch_train(model, optimizer, steps, x=X):
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def params_of(model, only=None):
    """By dicts of dicts; kernels are PyTorch's, so that equal shapes hide nothing."""
    tree = {}
    for name, parameter in model.named_parameters():
        if only is None or only(parameter):
            *layers, last = name.split(".")
            node = tree
            for layer in layers:
                node = node.setdefault(layer, {})
            node[last] = jnp.array(parameter.detach().numpy())
    return tree


def jax_train(optimizer, params, rest, state, steps):
    def loss(params):
        whole = merge(rest, params)
        x = X.numpy()
        for layer in (whole["embedding"], whole["blocks"]["0"], whole["blocks"]["1"]):
            x = jnp.tanh(x @ layer["weight"].T + layer["bias"])
        return jnp.mean((x @ whole["readout"]["weight"].T + whole["readout"]["bias"]) ** 2)

    return minimise(loss, optimizer, params, state, steps)


def merge(rest, params):
    if not isinstance(params, dict):
        return params
    return rest | {name: merge(rest.get(name, {}), value) for name, value in params.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_groups_in_another_order(prefix, tmp_path):
    """The order of named_parameters would pair equal blocks with each other's moments."""
    model, theirs = model_and_optimizer()
    # As torch.nn.parallel and torch.compile name the parameters of what they wrap.
    named = [(prefix + name, parameter) for name, parameter in model.named_parameters()]
    names = interop.names_of(theirs, named if prefix else model)
    assert names[:3] == [prefix + n for n in ("readout.weight", "readout.bias", "blocks.1.weight")]
    path = tmp_path / "run.pt"
    torch.save({"optimizer_states": [theirs.state_dict()], "epoch": 4}, path)
    params = params_of(model)
    state, groups = interop.from_torch(path, params, names=names, key=("optimizer_states", 0))
    optimizer = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(jax.eval_shape(optimizer.init, params), state)
    params, opt_state = jax_train(optimizer, params, {}, opt_state, N)
    torch_train(model, theirs, N)
    assert_close(params, params_of(model))
    back = interop.to_torch(opt_state, params, theirs, names=names)
    expected = theirs.state_dict()["state"]
    assert back["state"].keys() == expected.keys()
    for id, got in back["state"].items():
        assert got["step"] == expected[id]["step"]
        for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            np.testing.assert_allclose(got[moment], expected[id][moment], rtol=1e-9)


def test_a_model_that_the_optimizer_does_not_have():
    model, theirs = model_and_optimizer()
    with pytest.raises(ValueError, match=r"group 0 has a parameter of shape \(1, 3\) that is not"):
        interop.names_of(theirs, copy.deepcopy(model))
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got Blocks"):
        interop.names_of(model, model)


@pytest.mark.parametrize("names", ["all", "with state", "param_names"])
def test_frozen_parameters(names):
    frozen = ("embedding", "blocks.0")
    model, theirs = model_and_optimizer(frozen, names=names == "param_names")
    how = {}
    if names != "param_names":
        every = interop.names_of(theirs, model)
        trained = [name for name in every if not name.startswith(frozen)]
        how = dict(names=every if names == "all" else trained)
    params = params_of(model, only=lambda p: p.requires_grad)
    rest = params_of(model)
    state, groups = interop.from_torch(theirs, params, **how)
    assert sum(len(group.paths) for group in groups) == 4
    optimizer = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(optimizer.init(params), state)
    params, opt_state = jax_train(optimizer, params, rest, opt_state, N)

    back = interop.to_torch(opt_state, params, theirs, **how)
    assert back["state"].keys() == theirs.state_dict()["state"].keys()
    torch_train(model, theirs, N)
    assert_close(params, params_of(model, only=lambda p: p.requires_grad))
    # PyTorch takes the state over, and goes on from it.
    other, again = model_and_optimizer(frozen, names=names == "param_names")
    torch_train(other, again, N)
    again.load_state_dict(back)
    torch_train(other, again, N)
    params, _ = jax_train(optimizer, params, rest, opt_state, N)
    assert_close(params, params_of(other, only=lambda p: p.requires_grad))

    with pytest.raises(ValueError, match="weight' has no state, .* Leave '.*/weight' out"):
        interop.from_torch(theirs, rest, **(how | dict(names=interop.names_of(theirs, model))))
    with pytest.raises(ValueError, match="names must be 8, .*, or 4, one for each that has"):
        interop.from_torch(theirs, params, names=["a"])
    missing = {name: value for name, value in params.items() if name != "readout"}
    with pytest.raises(ValueError, match="'readout.weight' becomes 'readout/weight', which is no"):
        interop.from_torch(theirs, missing, **how)


def test_string_ids_are_names():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, theirs = model_and_optimizer()
    params = params_of(model)
    expected = interop.from_torch(theirs, params, names=interop.names_of(theirs, model))
    state_dict = get_optimizer_state_dict(model, theirs)
    assert "blocks.1.weight" in state_dict["state"]
    chex.assert_trees_all_equal(interop.from_torch(state_dict, params).state, expected.state)
    back = interop.to_torch(expected.state, params, state_dict)
    assert_same(back["state"], state_dict["state"])


def test_leaves_with_names_of_pytorch_need_no_rename():
    model, theirs = model_and_optimizer()
    names = interop.names_of(theirs, model)
    nested = interop.from_torch(theirs, params_of(model), names=names).state
    flat = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    state, _ = interop.from_torch(theirs, flat, names=names)
    np.testing.assert_array_equal(state.nu["blocks.1.bias"], nested.nu["blocks"]["1"]["bias"])


def test_a_function_for_renaming_keeps_the_slashes():
    model, theirs = model_and_optimizer()
    names = interop.names_of(theirs, model)
    params = params_of(model)
    params["head"] = params.pop("readout")
    by_function, _ = interop.from_torch(
        theirs, params, names=names, rename=lambda name: name.replace("readout", "head")
    )
    by_mapping, _ = interop.from_torch(
        theirs,
        params,
        names=[f"module.{name}" for name in names],
        rename={"readout.weight": "head/weight", "module.readout.bias": "head.bias"},
    )
    chex.assert_trees_all_equal(by_function, by_mapping)
    with pytest.raises(ValueError, match="rename has 'readout.wieght', which no parameter"):
        interop.from_torch(theirs, params, names=names, rename={"readout.wieght": "head/weight"})


@pytest.mark.parametrize("kind", ["nnx", "boxed"])
def test_square_kernels_of_flax_are_transposed(kind):
    """In NNX and in boxes the path of a kernel ends in `value`."""
    layer = torch.nn.Linear(3, 3).double()
    theirs = torch.optim.Adam(layer.named_parameters(), amsgrad=True)
    torch_train(layer, theirs, 2)
    if kind == "nnx":
        nnx = pytest.importorskip("flax.nnx")
        model = nnx.Linear(3, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        params = nnx.state(model, nnx.Param)
    else:
        linen = pytest.importorskip("flax.linen")
        init = linen.with_partitioning(linen.initializers.ones, (None, "model"))
        model = linen.Dense(3, kernel_init=init, param_dtype=jnp.float64)
        params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    assert str(jax.tree_util.tree_leaves_with_path(params)[1][0]).count("value")
    how = dict(rename={"weight": "kernel"}, transposes=interop.flax_transposes)
    state, groups = interop.from_torch(theirs, params, **how)
    assert groups[0].paths == ("kernel", "bias")
    moments = theirs.state[layer.weight]
    np.testing.assert_array_equal(jax.tree.leaves(state.mu)[1], moments["exp_avg"].T)
    np.testing.assert_array_equal(jax.tree.leaves(state.nu_max)[1], moments["max_exp_avg_sq"].T)
    optimizer = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(optimizer.init(params), state)
    assert jax.tree.structure(opt_state) == jax.tree.structure(optimizer.init(params))
    assert_same(
        interop.to_torch(opt_state, params, theirs, **how)["state"], theirs.state_dict()["state"]
    )


def test_a_maximum_from_before_it_was_switched_off():
    model, theirs = model_and_optimizer()
    for group in theirs.param_groups:
        group["amsgrad"] = False
    for entry in theirs.state.values():  # of large gradients, which Adam has forgotten
        entry["max_exp_avg_sq"] = 400 * entry["max_exp_avg_sq"]
    names, params = interop.names_of(theirs, model), params_of(model)
    with pytest.raises(ValueError, match="has no maximum: amsgrad is off"):
        interop.from_torch(theirs, params, names=names)
    state, groups = interop.from_torch(theirs, params, names=names, without_max="use_nu")
    chex.assert_trees_all_equal(state.nu_max, state.nu)
    # Its next step is Adam's, where the gradient is not larger than it was.
    optimizer = interop.optimizer_of(groups, params)
    opt_state = interop.set_moments(optimizer.init(params), state)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, opt_state, params)
    before = params_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Our maximum keeps nu of before the step, 1 / 0.999 of PyTorch's; blocks/1 has weight decay.
    theirs.step()
    moved = jax.tree.map(lambda a, b: a - b, params_of(model), before)
    for layer in ("readout", "embedding"):
        assert_close(updates[layer], moved[layer], rtol=1e-3)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, r"no 'state' of an optimizer, only 'a', 'b'; .* at key=\('a', 0\) and key='b'"),
        ("a", r"'a' of the state dict must be .*, got list; .* key=\('a', 0\) and key='b'"),
        (("a", 1), "'a' of the state dict has no 1, only a list of 1; .*'b'"),
        (("a", "x"), "'a' of the state dict has no 'x', only a list of 1"),
        (("b", "state", 0, "step", 0), "'step' of 0 of 'state' of 'b' .* has no 0, only a Tensor"),
    ],
)
def test_where_an_optimizer_lies(key, message):
    state_dict, params = checkpoint()
    content = {"a": [state_dict], "b": state_dict}
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_torch(content, params, key=key, **HOW)
    expected = interop.from_torch(state_dict, params, **HOW)
    for right in (("a", 0), "b", ("b",)):
        got = interop.from_torch(content, params, key=right, **HOW)
        chex.assert_trees_all_equal(got.state, expected.state)


def test_an_error_names_optimizers_three_keys_deep():
    for whole, hint in (
        ({"a": {0: {"b": one_parameter()}}}, r"; an optimizer's .* at key=\('a', 0, 'b'\)$"),
        ({"a": {0: {"b": {"c": one_parameter()}}}}, "of an optimizer, only 'a'$"),
    ):
        with pytest.raises(ValueError, match=hint):
            interop.from_torch(whole, {"w": jnp.ones(2)})
    whole["a"][1] = whole  # a dict may contain itself
    with pytest.raises(ValueError, match="of an optimizer, only 'a'$"):
        interop.from_torch(whole, {"w": jnp.ones(2)})


@pytest.mark.parametrize(
    ("what", "kind", "allowed"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace", [argparse.Namespace]),
        (np.float64(0.1), "numpy._core.multiarray.scalar", None),
        (pathlib.PurePosixPath("runs"), "pathlib.PurePosixPath", [pathlib.PurePosixPath]),
        (datetime.date(2020, 1, 2), "datetime.date", [datetime.date]),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear", None),
    ],
    ids=["namespace", "numpy", "path", "date", "module"],
)
def test_refused_files_have_two_ways_out(tmp_path, what, kind, allowed):
    state_dict, params = checkpoint()
    path = tmp_path / "run.pt"
    torch.save({"args": what, "optimizer": state_dict}, path)
    with pytest.raises(ValueError, match=re.escape(f"it holds {kind}")) as caught:
        interop.from_torch(path, params, key="optimizer", **HOW)
    message = "".join(traceback.format_exception(caught.value))
    assert f"torch.serialization.safe_globals([{kind}" in message
    assert "pass the dict" in message
    assert "weights_only" not in message.partition("ValueError")[2]
    expected = interop.from_torch(state_dict, params, **HOW).state
    if allowed:
        with torch.serialization.safe_globals(allowed):
            got, _ = interop.from_torch(path, params, key="optimizer", **HOW)
        chex.assert_trees_all_equal(got, expected)
    loaded = torch.load(path, weights_only=False)
    got, _ = interop.from_torch(loaded, params, key="optimizer", **HOW)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is a TorchScript archive, .*state_dict") as caught:
        interop.from_torch(tmp_path / "model.pt", {})
    assert "weights_only" not in "".join(traceback.format_exception(caught.value)[-1:])


def test_params_that_are_not_trained_or_not_arrays():
    model, theirs = model_and_optimizer()
    names, params = interop.names_of(theirs, model), params_of(model)
    with pytest.raises(ValueError, match="'norm/mean' is none of the optimizer's, .*running means"):
        interop.from_torch(theirs, {**params, "norm": {"mean": jnp.ones(3)}}, names=names)
    tensors = dict(model.named_parameters())
    for call in (
        lambda: interop.from_torch(theirs, tensors, names=names),
        lambda: interop.to_torch(amsgrad_jax.amsgrad(0.1).init(params), tensors, theirs),
    ):
        with pytest.raises(TypeError, match="params must have arrays .* torch.Parameter .*numpy"):
            call()
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*the order of the optimizer's groups"):
        interop.from_torch(theirs, params, names=[name for name, _ in model.named_parameters()])


# Errors.


class Code:
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_files_with_code_are_refused(tmp_path, capsys):
    for zipped in (True, False):
        torch.save(
            {"state": {}, "param_groups": [Code()]},
            tmp_path / "file.pt",
            **dict(_use_new_zipfile_serialization=zipped),
        )
        with pytest.raises(ValueError, match=r"file\.pt was refused: it holds print"):
            interop.from_torch(tmp_path / "file.pt", {})
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(ValueError, match=r"plain\.pkl was refused: it holds print"):
        interop.from_torch(str(tmp_path / "plain.pkl"), {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, zipped):
    path = tmp_path / "file.pt"
    torch.save(checkpoint()[0], path, _use_new_zipfile_serialization=zipped)
    complete = path.read_bytes()
    incomplete = r"file\.pt was not written by torch\.save, or is incomplete: \w+Error"
    refused = r"file\.pt was refused: it is not what torch\.save writes by default"
    for content, message in (
        (complete[: len(complete) // 2], incomplete),
        (b"", incomplete),
        (b"learning rate: 0.1\n" * 9, refused),
        (pickle.dumps(checkpoint()[0], protocol=4), refused),
    ):
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # PyTorch's
            with pytest.raises(ValueError, match=message) as caught:
                interop.from_torch(path, {})
        assert "weights_only" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        interop.from_torch(tmp_path / "missing.pt", {})


def entry(state_dict, index):
    return state_dict["state"][index]


def group(state_dict, index):
    return state_dict["param_groups"][index]


# In the optimizer's order: conv.weight, dense.weight, square.weight; conv.bias, temperature.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: entry(s, 1).pop("max_exp_avg_sq"), "'dense.weight' has no 'max_exp_avg_sq'"),
        (lambda s: entry(s, 1).pop("exp_avg"), "'dense.weight' has no 'exp_avg', only 'step'"),
        (lambda s: entry(s, 1).pop("step"), "'dense.weight' has no 'step'"),
        (
            lambda s: entry(s, 3).update(exp_avg=torch.zeros(5)),
            r"exp_avg of 'conv.bias' has shape \(5,\).*\(4,\) of the parameter 'conv/bias'",
        ),
        (
            lambda s: entry(s, 1).update(exp_avg_sq=torch.zeros(3, 5)),
            r"exp_avg_sq of 'dense.weight' .*'dense/kernel' with transposes \(1, 0\)",
        ),
        (
            lambda s: entry(s, 1).update(exp_avg=torch.zeros(3)),
            r"exp_avg of 'dense.weight' has shape \(3,\)",
        ),
        (
            lambda s: entry(s, 1).update(exp_avg=torch.zeros(3, 2, 1)),
            r"exp_avg of 'dense.weight' has shape \(3, 2, 1\)",
        ),
        (
            lambda s: entry(s, 0).update(step=torch.tensor(4.0)),
            "'conv.weight' is at step 4 and 'dense.weight' at step 3",
        ),
        (
            lambda s: entry(s, 4).update(step=torch.tensor(4.0)),
            "'conv.weight' is at step 3 and 'temperature' at step 4",
        ),
        (
            lambda s: entry(s, 0).update(step=2.5),
            "the step of 'conv.weight' must be an integer .*, got 2.5",
        ),
        (
            lambda s: entry(s, 0).update(step=float("nan")),
            "the step of 'conv.weight' must be an integer .*, got nan",
        ),
        (
            lambda s: entry(s, 0).update(step=torch.ones(2)),
            "the step of 'conv.weight' must be one",
        ),
        (lambda s: s["state"].pop(2), "'square.weight' has no state, .* Leave 'square/kernel' out"),
        (lambda s: s["state"].pop(0), "'conv.weight' has no state, other"),
        (lambda s: s["state"].update({9: entry(s, 0)}), "parameter 9, which is in no group"),
        (lambda s: group(s, 1).update(maximize=True), "group 1 has maximize=True"),
        (lambda s: group(s, 1).pop("betas"), "group 1 has no 'betas': it is not one of Adam"),
        (lambda s: group(s, 1)["param_names"].pop(), "names must be 5, .* got 4"),
        (
            lambda s: group(s, 1).update(param_names=["conv.bias", "humidity"]),
            "'humidity' becomes 'humidity', which is no parameter: those are 'conv/bias'",
        ),
        (
            lambda s: group(s, 1).update(param_names=["conv.bias", "conv/bias"]),
            "'conv.bias' and 'conv/bias' both become 'conv/bias'",
        ),
        (lambda s: s.pop("state"), "has no 'state' of an optimizer, only 'param_groups'"),
        (lambda s: s.pop("param_groups"), "has no 'param_groups' of an optimizer"),
    ],
)
def test_wrong_state_dicts(change, message):
    state_dict, params = checkpoint()
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        interop.from_torch(state_dict, params, **HOW)


def test_wrong_arguments():
    state_dict, params = checkpoint()
    for wrong, error, message in [
        (dict(key="optimizer"), ValueError, "no 'optimizer', only 'state', 'param_groups'"),
        (dict(names=["conv.weight"]), ValueError, "names must be 5, one .* parameters, got 1"),
        (dict(names=list("abcdef")), ValueError, "names must be 5, .* got 6"),
        (dict(names="abcde"), TypeError, "names must be a sequence of names, got 'abcde'"),
        (dict(rename=lambda name: 3), TypeError, "rename must give .* got 3 for 'conv.weight'"),
        (dict(rename=lambda name: None), TypeError, "rename must give .* got None for every"),
        (dict(transposes={"dense/weight": (1, 0)}), ValueError, "'dense/weight', which is no par"),
        (dict(transposes={"dense/kernel": (1, 1)}), ValueError, r"\(1, 1\) for 'dense/kernel'"),
        (dict(transposes={"dense/kernel": (0, 0)}), ValueError, r"\(0, 0\) for 'dense/kernel'"),
        (dict(transposes={"dense/kernel": (0,)}), ValueError, r"\(0,\) for 'dense/kernel'"),
        (dict(transposes=None), ValueError, "'conv.weight' has shape"),
        (dict(rename=None), ValueError, "'conv.weight' becomes 'conv/weight', which is no"),
    ]:
        with pytest.raises(error, match=message):
            interop.from_torch(state_dict, params, **(HOW | wrong))
    with pytest.raises(ValueError, match="names must be 5, one .* PyTorch's parameters, got 1"):
        interop.from_torch(checkpoint(0)[0], params, **(HOW | dict(names=["conv.weight"])))
    with pytest.raises(ValueError, match="'more' is none of the optimizer's"):
        interop.from_torch(state_dict, {**params, "more": jnp.ones(2)}, **HOW)
    with pytest.raises(ValueError, match="'temperature' is complex"):
        interop.from_torch(state_dict, {**params, "temperature": jnp.ones((), complex)}, **HOW)
    with pytest.raises(TypeError, match="must be a torch.optim.Optimizer.*got int"):
        interop.from_torch(3, params)
    with pytest.raises(ValueError, match="group 0 has no .* not one of Adam"):
        interop.from_torch(torch.optim.SGD(dict(a=torch.ones(1)).items()), {"a": jnp.ones(1)})
    with pytest.raises(ValueError, match="the Linear has no 'state' of an optimizer, only 'weight"):
        interop.from_torch(torch.nn.Linear(1, 1), params)


def test_states_that_torch_cannot_continue():
    tensors = tensors_at_start()
    theirs = torch_optimizer(tensors)
    params = to_jax(values(tensors))
    optimizer = amsgrad_jax.amsgrad(0.1)
    _, state = jax_steps(params, optimizer, optimizer.init(params), 0, 1)
    with pytest.raises(ValueError, match=r"'dense/kernel' becomes .* but 'dense.weight' has shape"):
        interop.to_torch(
            state, params, theirs, rename=HOW["rename"], transposes={"conv/kernel": (2, 3, 1, 0)}
        )
    for size in (1, 3):
        of_two = torch.optim.Adam([("w", torch.ones(2))], amsgrad=True)
        one = amsgrad_jax.scale_by_amsgrad().init({"w": jnp.ones(size)})._replace(count=1)
        with pytest.raises(ValueError, match=rf"mu of 'w' becomes \({size},\), but 'w' has .*2,"):
            interop.to_torch(one, {"w": jnp.ones(size)}, of_two)
    with pytest.raises(ValueError, match="found optax.ScaleByAmsgradState"):
        interop.to_torch(optax.amsgrad(0.1).init(params), params, theirs, **HOW)
    with pytest.raises(ValueError, match="found optax.ScaleByAdamState"):
        interop.to_torch(optax.adam(0.1).init(params), params, theirs, **HOW)
    other = state[0]._replace(nu_max=jax.tree.map(lambda x: x.astype(jnp.int32), state[0].nu_max))
    with pytest.raises(TypeError, match=r"state.nu_max of 'conv/bias' is int32"):
        interop.to_torch(other, params, theirs, **HOW)


def test_packed_moments_enter_and_leave():
    tensors = tensors_at_start()
    theirs = torch_optimizer(tensors)
    torch_steps(tensors, theirs, 0, 20)
    params = to_jax(values(tensors))
    full, _ = interop.from_torch(theirs, params, **HOW)
    optimizer = amsgrad_jax.amsgrad(0.1, storage="packed")
    state = interop.set_moments(optimizer.init(params), full)
    chex.assert_trees_all_equal(state[0], amsgrad_jax.convert_storage(full, "packed"))
    back, _ = interop.from_torch(interop.to_torch(state, params, theirs, **HOW), params, **HOW)
    chex.assert_trees_all_equal(back, amsgrad_jax.convert_storage(state[0], "full"))
    chex.assert_trees_all_equal(interop.get_moments(state, params), back)


def test_groups_that_are_no_partition():
    group = interop.TorchGroup(("a",), {"learning_rate": 0.1}, weight_decay=0.0, decoupled=False)
    with pytest.raises(ValueError, match="'b' is in no group"):
        interop.optimizer_of([group], {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="'a' is in group 0 and in group 1"):
        interop.optimizer_of([group, group], {"a": 1.0})
    interop.optimizer_of([], {}).init({})


def test_without_torch(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install '\.\[parity\]' in a clone"):
        interop.from_torch("run.pt", {})


def square_layers(order):
    """A network whose optimizer's groups begin with the parameters in that order."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(2)]
    model = torch.nn.Sequential(*layers)
    named = dict(model.named_parameters())
    groups = [{"params": [(name, named[name]) for name in part]} for part in order]
    return model, torch.optim.AdamW(groups, lr=0.1, amsgrad=True)


def torch_descends(model, optimizer, steps):
    inputs = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        (torch.tanh(model(inputs)) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["optimizer", "state dict", "string ids"])
def test_names_may_not_contradict_those_of_the_optimizer(kind):
    model, optimizer = square_layers([["1.bias", "0.bias"], ["1.weight", "0.weight"]])
    torch_descends(model, optimizer, 2)
    params = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    source = optimizer
    if kind != "optimizer":
        source = optimizer.state_dict()
    if kind == "string ids":
        names = [name for group in source["param_groups"] for name in group.pop("param_names")]
        source["state"] = {names[id]: entry for id, entry in source["state"].items()}
        for group in source["param_groups"]:
            group["params"] = [names[id] for id in group["params"]]
    with pytest.raises(ValueError, match=r"'0\.weight' at place 0, .* has '1\.bias': leave names"):
        interop.from_torch(source, params, names=["0.weight", "1.weight", "0.bias", "1.bias"])
    named = interop.names_of(optimizer, model)
    expected = interop.from_torch(source, params)
    for names in (named, [f"module.{name}" for name in named]):
        chex.assert_trees_all_equal(interop.from_torch(source, params, names=names), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", ["linear", "channels_last"])
def test_moments_have_the_strides_of_the_parameters(layout, fused):
    """A fused step of PyTorch reads moments in the order of memory of the parameter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.randn(4, 3) if layout == "linear" else torch.randn(4, 3, 2, 2)
    if layout == "channels_last":
        weight = weight.to(memory_format=torch.channels_last)
    here, there = (
        torch.nn.Parameter(weight.clone(memory_format=torch.preserve_format)) for _ in range(2)
    )
    gradients = [torch.randn_like(weight) for _ in range(8)]
    make = lambda p: torch.optim.Adam([("kernel", p)], lr=0.1, amsgrad=True, fused=fused)
    optimizers = [make(here), make(there)]
    for p, optimizer in zip((here, there), optimizers, strict=True):
        for gradient in gradients[:4]:
            p.grad = gradient.clone(memory_format=torch.preserve_format)
            optimizer.step()
    params = {
        "kernel": jnp.array(np.transpose(here.detach().numpy(), tuple(reversed(range(here.ndim)))))
    }
    reverse = lambda path, ndim: tuple(reversed(range(ndim)))
    state, _ = interop.from_torch(optimizers[0], params, transposes=reverse)
    fresh = make(here)
    fresh.load_state_dict(interop.to_torch(state, params, fresh, transposes=reverse))
    for p, optimizer in ((here, fresh), (there, optimizers[1])):
        for gradient in gradients[4:]:
            p.grad = gradient.clone(memory_format=torch.preserve_format)
            optimizer.step()
    np.testing.assert_array_equal(here.detach().numpy(), there.detach().numpy())


def test_a_parameter_that_was_frozen_in_the_middle():
    tensors = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    optimizer = torch.optim.Adam(list(tensors.items()), lr=0.1, amsgrad=True)
    for step in range(9):
        tensors["a"].grad = torch.ones(3) if step < 5 else None
        tensors["b"].grad = torch.full((3,), step + 1.0)
        optimizer.step()
    params = {"b": jnp.ones(3)}
    with pytest.raises(ValueError, match="or to None to leave it out"):
        interop.from_torch(optimizer, params)
    for rename in ({"a": None}, lambda name: None if name == "a" else name):
        state, groups = interop.from_torch(optimizer, params, rename=rename)
        assert int(state.count) == 9
        assert groups[0].paths == ("b",)
        back = interop.to_torch(state, params, optimizer, rename=rename)
        for id, entry in optimizer.state_dict()["state"].items():
            for name, value in entry.items():
                assert torch.equal(back["state"][id][name], value)


def test_decoupled_may_not_contradict_the_checkpoint():
    tensors = tensors_at_start()
    for factory, decoupled in (("Adam", True), ("AdamW", False)):
        optimizer = torch_optimizer(tensors, factory)
        params = to_jax(values(tensors))
        with pytest.raises(ValueError, match=f"decoupled must be {not decoupled}, "):
            interop.from_torch(optimizer, params, decoupled=decoupled, **HOW)
        _, groups = interop.from_torch(optimizer, params, decoupled=not decoupled, **HOW)
        assert groups[0].decoupled is not decoupled


def one_parameter(**changes):
    entry = dict(step=3.0, exp_avg=np.ones(2), exp_avg_sq=np.ones(2), max_exp_avg_sq=np.ones(2))
    group = dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, amsgrad=True)
    entry = {key: value for key, value in (entry | changes).items() if value is not None}
    return {"state": {0: entry}, "param_groups": [group | {"params": [0], "param_names": ["w"]}]}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        # Without its maximum, a group with amsgrad=True is incomplete, whatever without_max says.
        ({"max_exp_avg_sq": None}, ValueError, "'w' has no 'max_exp_avg_sq', only 'step'"),
        ({"exp_avg_sq": -np.ones(2)}, ValueError, "exp_avg_sq of 'w' must not be negative, got -1"),
        ({"exp_avg": np.ones(2, np.int8)}, TypeError, "exp_avg of 'w' must have a floating point"),
        ({"exp_avg": torch.ones(2, device="meta")}, TypeError, "exp_avg of 'w' must be a dense"),
        ({"exp_avg": torch.ones(2).to_sparse()}, TypeError, "exp_avg of 'w' .* got a sparse one"),
        ({"step": 2.0**31}, ValueError, "the step of 'w' must be an integer from 0 to"),
        ({"step": 2.0**32}, ValueError, "the step of 'w' must be an integer from 0 to"),
        ({"step": -1.0}, ValueError, "the step of 'w' must be an integer from 0 to .*, got -1"),
        ({"step": np.ones(0)}, ValueError, r"the step of 'w' must be one number, got shape \(0,\)"),
        ({"step": "10"}, TypeError, "the step of 'w' must be a number, got '10'"),
        ({"step": True}, TypeError, "the step of 'w' must be a number, got True"),
    ],
)
def test_values_that_no_run_has(changes, error, message):
    with pytest.raises(error, match=message):
        interop.from_torch(one_parameter(**changes), {"w": jnp.ones(2)}, without_max="use_nu")


@pytest.mark.parametrize("step", [0, 2**31 - 1])
def test_the_first_count_and_the_last(step):
    state, _ = interop.from_torch(one_parameter(step=step), {"w": jnp.ones(2)})
    assert int(state.count) == step
    assert state.count.dtype == jnp.int32
    assert bool(state.mu["w"].any()) == bool(step)  # none before the first


def test_nan_is_no_reason_to_refuse_a_moment():
    source = one_parameter(exp_avg_sq=np.array([np.nan, 1.0]))
    state, _ = interop.from_torch(source, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(state.nu["w"], [np.nan, 1.0])


def test_arguments_of_the_wrong_kind():
    source, params = one_parameter(), {"w": jnp.ones(2)}
    result = interop.from_torch(source, params)
    for call, error, message in (
        (lambda: interop.optimizer_of(result, params), TypeError, r"from_torch\(\.\.\.\)\.groups"),
        (lambda: interop.optimizer_of(result.groups[0], params), TypeError, "sequence of TorchGr"),
        (
            lambda: interop.optimizer_of([result.groups[0]._replace(weight_decay=-0.1)], params),
            ValueError,
            "weight_decay must be",
        ),
        (lambda: interop.from_torch(source, params, rename=["w"]), TypeError, "rename must be a m"),
        (lambda: interop.from_torch(source, params, transposes=True), TypeError, "transposes must"),
        (
            lambda: interop.from_torch(source, params, names=[("w", torch.ones(2))]),
            TypeError,
            "names must be strings, got tuple",
        ),
        (
            lambda: interop.from_torch(source | {"param_groups": [{}]}, params),
            ValueError,
            "group 0 has no 'params'",
        ),
        (
            lambda: interop.from_torch({"state.w.step": 1.0, "param_groups.w.lr": 0.1}, params),
            ValueError,
            "flatten_optimizer_state_dict=False",
        ),
        *(
            (
                lambda model=model: interop.names_of(torch.optim.Adam([torch.ones(2)]), model),
                TypeError,
                rf"pairs of names and parameters .* has them, got {type(model[0]).__name__}",
            )
            for model in ([torch.ones(2)], ["ab"], [("a",)], [("a", torch.ones(2), 0)], [(0, 1)])
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_an_optimizer_in_a_file_is_not_its_state_dict(tmp_path):
    optimizer = torch.optim.Adam([("w", torch.ones(2, requires_grad=True))], amsgrad=True)
    torch.save({"optimizer": optimizer}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"it holds an optimizer, .* optimizer\.state_dict\(\)"):
        interop.from_torch(tmp_path / "file.pt", {"w": jnp.ones(2)}, key="optimizer")


def test_every_class_that_a_file_needs_is_named(tmp_path):
    checkpoint = {"optimizer": one_parameter(), "best": np.float64(3), "when": datetime.date.min}
    checkpoint["optimizer"]["state"][0] = {
        name: torch.as_tensor(value) for name, value in checkpoint["optimizer"]["state"][0].items()
    }
    torch.save(checkpoint, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="was refused") as caught:
        interop.from_torch(tmp_path / "file.pt", {"w": jnp.ones(2)}, key="optimizer")
    listed = re.search(r"safe_globals\(\[(.*?)\]\)", str(caught.value))[1].split(", ")
    allowed = [
        functools.reduce(getattr, name.split(".")[1:], importlib.import_module(name.split(".")[0]))
        for name in [*listed, re.search(r"such as (numpy\.\w+\.\w+)", str(caught.value))[1]]
    ]
    with torch.serialization.safe_globals(allowed):
        state, _ = interop.from_torch(tmp_path / "file.pt", {"w": jnp.ones(2)}, key="optimizer")
    assert int(state.count) == 3


def test_names_that_wrappers_put_inside():
    source = one_parameter()
    for name in ("0._orig_mod.w", "module.0._fsdp_wrapped_module._checkpoint_wrapped_module.w"):
        source["param_groups"][0]["param_names"] = [name]
        state, _ = interop.from_torch(source, {"0": {"w": jnp.ones(2)}})
        assert int(state.count) == 3
        with pytest.raises(ValueError, match="becomes '0/w', which is no parameter"):
            interop.from_torch(source, {"1": {"w": jnp.ones(2)}})
    source["param_groups"][0]["param_names"] = ["_orig_mod.W"]
    assert int(interop.from_torch(source, {"W": jnp.ones(2)}).state.count) == 3


@pytest.mark.parametrize(
    ("number", "shown"), [(1, "'0'"), (8, "'0', .*'6', '7'"), (9, "'0', .*'6', '7', ...")]
)
def test_errors_show_the_first_eight_names(number, shown):
    source = one_parameter()
    source["param_groups"][0].update(
        params=list(range(number)), param_names=[str(i) for i in range(number)]
    )
    with pytest.raises(ValueError, match=rf"which no parameter is called: those are {shown}$"):
        interop.from_torch(source, {"0": jnp.ones(2)}, rename={"w": "0"})


def test_names_of_all_or_of_the_one_that_has_a_state():
    source = one_parameter()
    source["param_groups"][0].update(params=[0, 1], param_names=["w", "frozen"])
    for names in (["w"], ["w", "frozen"]):
        state, _ = interop.from_torch(source, {"w": jnp.ones(2)}, names=names)
        assert int(state.count) == 3
    with pytest.raises(ValueError, match="must be 2, .*, or 1, one for each .* a state, got 3"):
        interop.from_torch(source, {"w": jnp.ones(2)}, names=["w", "frozen", "v"])


def test_flax_transposes_kernels_only():
    for path, ndim in (("kernel", 1), ("embedding", 2), ("a/weight", 2), ("kernel/lora", 2)):
        assert interop.flax_transposes(path, ndim) is None
    assert interop.flax_transposes("kernel", 3) == (2, 1, 0)
