"""Training goes on in JAX where PyTorch stopped, and in PyTorch where JAX stopped."""

import copy
import pickle

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
    opt_state = interop.put(optimizer.init(params), state)
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

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    train(5)
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
    opt_state = interop.put(ours.init(params), state)

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = ours.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(N):
        params, opt_state = step(params, opt_state)
    train(N)
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
    with pytest.raises(ValueError, match="group 0 has no param_names: pass names"):
        interop.from_torch(state_dict, params, **HOW)
    assert_close(interop.from_torch(state_dict, params, names=names, **HOW).state, expected.state)


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
    with pytest.raises(ValueError, match="'conv.weight' has no .*amsgrad was off.*use_nu"):
        interop.from_torch(state_dict, params, **HOW)
    state, _ = interop.from_torch(state_dict, params, without_max="use_nu", **HOW)
    assert_close(state.nu_max, state.nu)
    assert jnp.all(state.nu["conv"]["kernel"] > 0)
    with pytest.raises(ValueError, match="amsgrad off"):
        interop.to_torch(state, params, state_dict, **HOW)
    with pytest.raises(ValueError, match="without_max must be"):
        interop.from_torch(state_dict, params, without_max="yes", **HOW)


def test_state_is_a_copy():
    tensors = tensors_at_start()
    optimizer = torch_optimizer(tensors)
    torch_steps(tensors, optimizer, 0, 1)
    state, _ = interop.from_torch(optimizer, to_jax(values(tensors)), **HOW)
    before = np.array(state.nu["conv"]["bias"])
    torch_steps(tensors, optimizer, 1, 3)
    np.testing.assert_array_equal(state.nu["conv"]["bias"], before)


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
    with pytest.raises(ValueError, match=r"plain\.pkl was refused"):
        interop.from_torch(str(tmp_path / "plain.pkl"), {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, zipped):
    path = tmp_path / "file.pt"
    torch.save(checkpoint()[0], path, _use_new_zipfile_serialization=zipped)
    complete = path.read_bytes()
    for content in (complete[: len(complete) // 2], b"", b"learning rate: 0.1\n" * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.pt"):
            interop.from_torch(path, {})
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
            lambda s: entry(s, 4).update(step=torch.tensor(4.0)),
            "'conv.weight' is at step 3 and 'temperature' at step 4",
        ),
        (lambda s: entry(s, 0).update(step=2.5), "the step of 'conv.weight' is 2.5"),
        (lambda s: entry(s, 0).update(step=float("nan")), "the step of 'conv.weight' is nan"),
        (lambda s: entry(s, 0).update(step=torch.ones(2)), "the step of 'conv.weight' must be one"),
        (lambda s: s["state"].pop(2), "'square.weight' has no state, other"),
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
        (dict(names=["conv.weight"]), ValueError, "names must be 5, .* got 1"),
        (dict(names="abcde"), ValueError, "got 'abcde'"),
        (dict(transposes={"dense/weight": (1, 0)}), ValueError, "'dense/weight', which is no par"),
        (dict(transposes={"dense/kernel": (1, 1)}), ValueError, r"\(1, 1\) for 'dense/kernel'"),
        (dict(transposes=None), ValueError, "'conv.weight' has shape"),
        (dict(rename=None), ValueError, "'conv.weight' becomes 'conv/weight', which is no"),
    ]:
        with pytest.raises(error, match=message):
            interop.from_torch(state_dict, params, **(HOW | wrong))
    with pytest.raises(ValueError, match="'more' is none of PyTorch's"):
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
    with pytest.raises(ValueError, match="found optax.ScaleByAmsgradState"):
        interop.to_torch(optax.amsgrad(0.1).init(params), params, theirs, **HOW)
    with pytest.raises(ValueError, match="found optax.ScaleByAdamState"):
        interop.to_torch(optax.adam(0.1).init(params), params, theirs, **HOW)
    other = state[0]._replace(nu_max=jax.tree.map(lambda x: x.astype(jnp.int32), state[0].nu_max))
    with pytest.raises(TypeError, match=r"state.nu_max at \['conv'\]\['bias'\] is int32"):
        interop.to_torch(other, params, theirs, **HOW)


def test_packed_moments_enter_and_leave():
    tensors = tensors_at_start()
    theirs = torch_optimizer(tensors)
    torch_steps(tensors, theirs, 0, 20)
    params = to_jax(values(tensors))
    full, _ = interop.from_torch(theirs, params, **HOW)
    optimizer = amsgrad_jax.amsgrad(0.1, storage="packed")
    state = interop.put(optimizer.init(params), full)
    chex.assert_trees_all_equal(state[0], amsgrad_jax.convert_storage(full, "packed"))
    back, _ = interop.from_torch(interop.to_torch(state, params, theirs, **HOW), params, **HOW)
    chex.assert_trees_all_equal(back, amsgrad_jax.convert_storage(state[0], "full"))
    count, *moments = interop.take(state, params)
    chex.assert_trees_all_equal((count, *moments), tuple(back))


def test_groups_that_are_no_partition():
    group = interop.TorchGroup(("a",), {"learning_rate": 0.1}, weight_decay=0.0, decoupled=False)
    with pytest.raises(ValueError, match="'b' is in no group"):
        interop.optimizer_of([group], {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="'a' is in group 0 and in group 1"):
        interop.optimizer_of([group, group], {"a": 1.0})


def test_without_torch(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'amsgrad_jax\[parity\]'"):
        interop.from_torch("run.pt", {})
