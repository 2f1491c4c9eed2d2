"""Every cell of the README's table beside other libraries."""

import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from amsgrad_jax import amsgrad, projections
from tests.parity import trajectories

ROOT = pathlib.Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
LR = 1e-3
GRADIENTS = {"w": np.array([10.0] + 50 * [1.0])}  # one large gradient at the start
START = {"w": np.zeros(())}
LOW_BIT = ("Adam8bit", "Adam4bit", "AdamFp8", "AdamW8bit", "AdamW4bit", "AdamWFp8")


def cells(row):
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def moved(optimizer):
    return float(trajectories.of_optax(optimizer, GRADIENTS, START, "float64")[-1].squeeze())


@pytest.fixture
def in_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=LR, amsgrad=True)
    for gradient in GRADIENTS["w"]:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.item()


def test_the_default_has_the_numbers_of_torch(in_torch):
    assert moved(amsgrad(LR)) == pytest.approx(in_torch, rel=1e-12)
    assert cells("PyTorch's numbers")[0] == "yes"


def test_optax_has_the_numbers_of_torch_with_no_flags(in_torch):
    flags = ("bias_correction_mu", "bias_correction_nu")
    for chosen in itertools.product((True, False), repeat=2):
        try:
            theirs = optax.amsgrad(LR, **dict(zip(flags, chosen, strict=True)))
        except TypeError:  # Optax 0.2.5 has no flags yet
            theirs = optax.amsgrad(LR)
        assert moved(theirs) != pytest.approx(in_torch, rel=0.3)
    assert cells("PyTorch's numbers")[1] == "no, with any flags"


def test_keras_has_other_numbers_than_torch_where_eps_matters():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    small = {"w": np.full(10, 1e-8)}
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=LR, eps=1e-8, amsgrad=True)
    for gradient in small["w"]:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    keras = trajectories.of_keras(
        lambda keras: keras.optimizers.Adam(LR, epsilon=1e-8, amsgrad=True),
        small,
        START,
        "float64",
    )
    assert float(keras[-1].squeeze()) / parameter.item() < 0.3
    assert cells("PyTorch's numbers")[3] == "no: `eps` acts differently"


def test_bytes_and_times_are_those_of_the_benchmarks():
    array = json.loads((ROOT / "docs/speed_cpu.json").read_text())["trees"][0]
    assert array["size"] == 32e6
    names = ("ours, full", "ours, packed", "optax.amsgrad", "torch Adam(amsgrad=True), default")
    ours, packed, theirs, torch, fused, keras = (
        f"{array['step'][name][1]:.3g}"
        for name in (*names, "torch Adam(amsgrad=True), fused", "Keras on JAX")
    )
    assert cells("step of 32 M parameters on 2 CPU cores, ms")[:4] == [
        f"{ours}, packed {packed}",
        theirs,
        f"{torch}, fused {fused}",
        keras,
    ]
    errors = json.loads((ROOT / "docs/accuracy.json").read_text())["errors"]
    assert cells("worst float32 error of a step, `b2=0.9999`")[:3] == [
        f"{errors[name][-1]:.1e}"
        for name in ("ours, pytorch", "optax.amsgrad", "torch Adam(amsgrad=True)")
    ]


def bytes_per_parameter(optimizer, dtype=jnp.float32):
    state = optimizer.init(jnp.zeros(100, dtype))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) / 100


def test_the_state_of_ours_and_of_optax():
    assert [bytes_per_parameter(amsgrad(LR, storage=s)) for s in ("full", "packed")] == [12, 4]
    assert bytes_per_parameter(optax.amsgrad(LR)) == 12
    assert bytes_per_parameter(amsgrad(LR), jnp.bfloat16) == 12
    assert bytes_per_parameter(optax.amsgrad(LR), jnp.bfloat16) == 6
    assert cells("state, bytes per parameter")[:4] == ["12, packed 4", "12", "12", "12"]
    assert cells("moments of bfloat16")[:2] == ["float32, or packed", "bfloat16"]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 12), ("bfloat16", 6)])
def test_the_state_of_torch(dtype, expected):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    parameter = torch.zeros(100, dtype=getattr(torch, dtype), requires_grad=True)
    optimizer = torch.optim.Adam([parameter], amsgrad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    arrays = [value for value in optimizer.state[parameter].values() if value.ndim]
    assert sum(value.numel() * value.element_size() for value in arrays) == expected * 100


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 12), ("bfloat16", 6)])
def test_the_state_of_keras(dtype, expected):
    keras = trajectories.keras_with_jax()
    variable = keras.Variable(np.zeros(100), dtype=dtype)
    optimizer = keras.optimizers.Adam(amsgrad=True)
    optimizer.build([variable])
    arrays = [v.value for v in optimizer.variables if v.shape == (100,)]
    assert sum(array.nbytes for array in arrays) == expected * 100


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", LOW_BIT)
def test_torchao_raises_in_the_first_step(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    torchao = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    parameter = torch.nn.Parameter(torch.ones(128, 256))
    optimizer = getattr(torchao, name)([parameter], lr=LR, amsgrad=True)
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(Exception, match="maximum"):
        optimizer.step()
    assert cells("`amsgrad`")[4] == "raises in the first step"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit", "PagedAdamW8bit"])
def test_bitsandbytes_raises_in_8_bit_beside_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    parameter = torch.nn.Parameter(torch.ones(128, 256))
    with pytest.raises(ValueError, match=r"does not support amsgrad=True"):
        getattr(bitsandbytes.optim, name)([parameter], amsgrad=True)
    assert cells("`amsgrad`")[5] == "raises"


@pytest.mark.filterwarnings("default")
def test_bitsandbytes_keeps_no_maximum_in_32_bit_beside_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make parity has it")
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    parameter = torch.nn.Parameter(torch.ones(128, 256))
    optimizer = bitsandbytes.optim.Adam([parameter], amsgrad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    arrays = [value for value in optimizer.state[parameter].values() if hasattr(value, "shape")]
    assert len(arrays) == 2


@pytest.mark.parametrize(
    "optimizer",
    [amsgrad(LR), amsgrad(LR, storage="packed"), optax.amsgrad(LR)],
    ids=["full", "packed", "optax"],
)
def test_a_state_resharded_from_8_devices_to_4_has_the_same_bits(optimizer):
    assert jax.device_count() == 8
    gradients = jax.random.normal(jax.random.key(0), (10, 16, 3))

    def run(devices_of_step):
        params = jnp.ones((16, 3))
        state = optimizer.init(params)
        for gradient, devices in zip(gradients, devices_of_step, strict=True):
            mesh = Mesh(np.array(jax.devices()[:devices]), "data")
            of = lambda leaf, mesh=mesh: NamedSharding(
                mesh, PartitionSpec("data") if jnp.ndim(leaf) else PartitionSpec()
            )
            state = jax.tree.map(lambda leaf: jax.device_put(leaf, of(leaf)), state)  # noqa: B023
            _, state = jax.jit(optimizer.update)(jax.device_put(gradient, of(gradient)), state)
        return jax.device_get(state)

    resharded, whole = run(5 * [8] + 5 * [4]), run(10 * [8])
    assert all(map(np.array_equal, jax.tree.leaves(resharded), jax.tree.leaves(whole)))
    assert cells("state resharded from 8 devices to 4")[:2] == ["same bits", "same bits"]


def test_only_ours_projects_in_the_metric_of_the_maximum():
    loss = lambda x: jnp.sum(jnp.array([1.0, 10.0, 1.0]) * (x - jnp.array([2.0, 1.0, -1.0])) ** 2)

    @jax.jit
    def ours(x, state):
        updates, state = projected.update(jax.grad(loss)(x), state, x)
        return optax.apply_updates(x, updates), state

    @jax.jit
    def theirs(x, state):
        updates, state = plain.update(jax.grad(loss)(x), state)
        return optax.projections.projection_simplex(x + updates), state

    projected = projections.projected(amsgrad(0.05), projections.simplex())
    plain = optax.amsgrad(0.05)
    x = y = jnp.ones(3) / 3
    state, plain_state = projected.init(x), plain.init(y)
    for _ in range(300):
        x, state = ours(x, state)
        y, plain_state = theirs(y, plain_state)
    assert math.isclose(x.sum(), 1, abs_tol=1e-6)
    assert loss(y) > 1.05 * loss(x)
    assert cells("projection in the metric")[:2] == ["yes", "no"]


def test_the_spread_on_the_digits():
    model = json.loads((ROOT / "docs/section5.json").read_text())["models"]
    accuracies = {
        name: np.array(run["test accuracy"])[:, -1]
        for name, run in model["hidden"]["optimizers"].items()
    }
    for accuracy in accuracies.values():
        assert f"{100 * accuracy.mean():.1f}" == "97.2"
        assert f"{100 * accuracy.std():.1f}" == "0.5"
