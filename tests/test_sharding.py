"""The state on a mesh: the same numbers however it is split, and the bytes that were promised."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import amsgrad_jax
from amsgrad_jax import __main__, sharding

try:
    from jax import shard_map
except ImportError:  # before jax 0.8
    from jax.experimental.shard_map import shard_map

P = PartitionSpec
STORAGES = ("full", "packed")
every_storage = pytest.mark.parametrize("storage", STORAGES)
DEVICES = np.array(jax.devices("cpu")[:8])
MESH = Mesh(DEVICES, ("data",))
GRID = Mesh(DEVICES.reshape(2, 4), ("data", "model"))
STEPS = 4


def unchecked(function, mesh, in_specs, out_specs):
    """shard_map in which gradients are those of the local batch, as in pmap."""
    off = {"check_vma": False} if hasattr(jax, "shard_map") else {"check_rep": False}
    return shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **off)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def start():
    return {"w": normal(0, 16, 8), "v": normal(1, 8, 24), "b": normal(2, 3), "s": np.float32(1)}


# Two of its leaves can be split over 8 devices: "w" in its first dimension, "v" in its second.
SPLIT = {"w": P("data", None), "v": P(None, "data"), "b": P(), "s": P()}

# For each step and device a gradient, of small integers: their mean over 8 devices is exact in
# every order of summation, so that all that remains to compare is the optimizer.
INTEGERS = np.random.default_rng(3)
BATCHES = jax.tree.map(
    lambda p: INTEGERS.integers(-9, 10, (STEPS, 8, *np.shape(p))).astype(np.float32), start()
)


def linear(params, batch):
    """A loss whose gradient is the mean of the batch."""
    products = jax.tree.map(lambda p, x: jnp.sum(p * x) / x.shape[0], params, batch)
    return sum(jax.tree.leaves(products))


def make_step(optimizer, loss=linear, average=lambda gradients: gradients):
    def step(params, state, batch):
        updates, state = optimizer.update(average(jax.grad(loss)(params, batch)), state, params)
        return optax.apply_updates(params, updates), state

    return step


def on(mesh, tree, specs):
    """The tree on a mesh, by one spec for all or by a tree of them."""
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def zero1(optimizer, params, mesh):
    return sharding.zero1_shardings(jax.eval_shape(optimizer.init, params), params, mesh)


def jit_with_zero1(optimizer, params, mesh, loss=linear):
    """The step and the first state."""
    out = zero1(optimizer, params, mesh).shardings
    of_params = jax.tree.map(lambda p: p.sharding, params)
    step = jax.jit(make_step(optimizer, loss), out_shardings=(of_params, out), donate_argnums=1)
    return step, jax.jit(optimizer.init, out_shardings=out)(params)


def follow(step, params, state, place=lambda batch: batch, count=STEPS):
    for t in range(count):
        batch = jax.tree.map(lambda x, t=t: x[t % STEPS], BATCHES)
        # With many steps under way on few cores, collectives on a CPU can wait for each other.
        params, state = jax.block_until_ready(step(params, state, place(batch)))
    return params, state


def run_single(optimizer):
    params = jax.device_put(start(), DEVICES[0])
    return follow(jax.jit(make_step(optimizer)), params, optimizer.init(params))


def run_pmap(optimizer):
    average = lambda gradients: jax.lax.pmean(gradients, "data")
    step = jax.pmap(make_step(optimizer, average=average), axis_name="data", devices=list(DEVICES))
    one_each = lambda tree: jax.tree.map(lambda x: np.stack(8 * [x]), tree)
    state = optimizer.init(start())
    keep_axis = lambda batch: jax.tree.map(lambda x: x[:, None], batch)
    params, state = follow(step, one_each(start()), one_each(jax.device_get(state)), keep_axis)
    first = jax.tree.map(lambda x: np.asarray(x)[0], (params, state))
    for device in range(1, 8):
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, i=device: np.asarray(x)[i], (params, state)), first
        )
    return first


def run_shard_map(optimizer):
    average = lambda gradients: jax.lax.pmean(gradients, "data")
    step = unchecked(make_step(optimizer, average=average), MESH, (P(), P(), P("data")), P())
    params = on(MESH, start(), P())
    return follow(jax.jit(step), params, jax.jit(optimizer.init)(params))


def run_replicated(optimizer):
    params = on(MESH, start(), P())
    place = lambda batch: on(MESH, batch, P("data"))
    return follow(jax.jit(make_step(optimizer)), params, jax.jit(optimizer.init)(params), place)


def run_zero1(optimizer, mesh=MESH, specs=None):
    params = on(mesh, start(), specs or P())
    step, state = jit_with_zero1(optimizer, params, mesh)
    return follow(step, params, state, lambda batch: on(mesh, batch, P("data")))


def run_grid(optimizer):
    specs = {"w": P(None, "model"), "v": P("model"), "b": P(), "s": P()}
    return run_zero1(optimizer, GRID, specs)


def run_explicit(optimizer):
    if not hasattr(jax, "set_mesh"):
        pytest.skip("explicit axes are new in later versions of jax")
    mesh = Mesh(DEVICES, ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    return run_zero1(optimizer, mesh)


RUNS = [run_pmap, run_shard_map, run_replicated, run_zero1, run_grid, run_explicit]


# The same numbers everywhere.


def dyadic(storage):
    """An optimizer that has nothing to round in its averages and in the product with its rate.

    Then it makes no difference which multiplications a compiler fuses with additions.
    """
    return amsgrad_jax.amsgrad(2.0**-6, b1=0.5, b2=0.75, eps=0.0, storage=storage)


@pytest.fixture(scope="module")
def single():
    return {storage: jax.device_get(run_single(dyadic(storage))) for storage in STORAGES}


@every_storage
@pytest.mark.parametrize("run", RUNS)
def test_ends_bitwise_where_one_device_does(run, storage, single):
    got = run(dyadic(storage))
    for leaf in jax.tree.leaves(got):
        shards = {}
        for shard in getattr(leaf, "addressable_shards", ()):  # replicas are equal, too
            shards.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        assert all(np.array_equal(one, same[0]) for same in shards.values() for one in same)
    chex.assert_trees_all_equal(jax.device_get(got), single[storage])


@pytest.mark.parametrize(
    ("storage", "steps", "allowed"),
    [("full", 200, 1e-5), ("packed", 20, 1e-2), ("packed", 200, 3e-2)],
)
def test_a_network_ends_where_one_device_does_up_to_the_order_of_sums(storage, steps, allowed):
    params = {"in": normal(0, 16, 64) / 4, "out": normal(1, 64, 8) / 8}
    x, y = normal(2, 64, 16), normal(3, 64, 8)
    loss = lambda p, batch: jnp.mean((jnp.tanh(batch[0] @ p["in"]) @ p["out"] - batch[1]) ** 2)
    optimizer = amsgrad_jax.amsgrad(1e-2, storage=storage)

    def run(params, step, state, batch):
        for _ in range(steps):
            params, state = jax.block_until_ready(step(params, state, batch))
        return jax.device_get(params)

    alone = run(params, jax.jit(make_step(optimizer, loss)), optimizer.init(params), (x, y))
    placed = on(MESH, params, P())
    together = run(
        placed, *jit_with_zero1(optimizer, placed, MESH, loss), on(MESH, (x, y), P("data"))
    )
    # Where a moment lies between two words, the last bit of a gradient can decide which it gets.
    for name in params:
        way = np.linalg.norm(alone[name] - params[name])
        assert way > 0.1 * np.linalg.norm(params[name])
        assert np.linalg.norm(together[name] - alone[name]) < allowed * way


@every_storage
def test_in_shard_map_over_split_params_rounding_is_of_the_local_index(storage):
    optimizer = amsgrad_jax.scale_by_amsgrad(storage=storage)
    params = normal(0, 64, 4)
    _, want = jax.jit(optimizer.update)(params, optimizer.init(params))
    local = lambda shard: optimizer.update(shard, optimizer.init(shard))[1]
    specs = type(want)(P(), *(P("data") for _ in want[1:]))
    got = jax.jit(unchecked(local, MESH, P("data"), specs))(params)
    if storage == "full":
        chex.assert_trees_all_equal(got, want)
        return
    assert jnp.any(got.packed != want.packed)
    got, want = (amsgrad_jax.convert_storage(state, "full") for state in (got, want))
    # The maximum is not rounded stochastically; the others are a neighbour, above or below.
    chex.assert_trees_all_equal(got.nu_max, want.nu_max)
    units = jnp.sqrt(want.nu_max) * 2**-10
    assert jnp.all(jnp.abs(jnp.sqrt(got.nu) - jnp.sqrt(want.nu)) <= 1.01 * units)
    np.testing.assert_allclose(got.mu, want.mu, rtol=2**-3)


# Where it lives.


@every_storage
def test_each_device_holds_an_eighth(storage):
    params = on(MESH, {"w": normal(0, 16, 8), "v": normal(1, 8, 24), "u": normal(2, 64)}, P())
    optimizer = amsgrad_jax.amsgrad(1e-2, storage=storage)
    state = jit_with_zero1(optimizer, params, MESH)[1][0]
    moments = jax.tree.leaves(state[1:])
    assert {leaf.sharding.num_devices for leaf in moments} == {8}
    for leaf in moments:
        assert [8 * shard.data.nbytes for shard in leaf.addressable_shards] == 8 * [leaf.nbytes]


def with_data_parallelism(optimizer, params):
    """The step and the first state of docs/many_devices.md without ZeRO."""
    init = jax.jit(optimizer.init, out_shardings=NamedSharding(MESH, P()))
    return jax.jit(make_step(optimizer)), init(params)


@pytest.mark.parametrize(
    "program",
    [with_data_parallelism, lambda *given: jit_with_zero1(*given, MESH)],
    ids=["data parallelism", "ZeRO"],
)
def test_no_step_but_the_first_is_compiled(program, caplog):
    params = on(MESH, start(), P())
    step, state = program(dyadic("full"), params)
    compiled = lambda: sum(
        bool(re.match(r"Compiling (jit\()?step\b", record.message)) for record in caplog.records
    )
    with jax.log_compiles():
        params, state = follow(step, params, state, lambda x: on(MESH, x, P("data")), count=1)
        assert compiled() == 1
        follow(step, params, state, lambda x: on(MESH, x, P("data")))
    assert compiled() == 1


def test_splits_the_largest_dimension_that_is_free():
    shape = lambda *dimensions, spec=None: jax.ShapeDtypeStruct(
        dimensions, jnp.float32, sharding=None if spec is None else NamedSharding(GRID, spec)
    )
    params = {
        "largest": shape(4, 8, 6),
        "first of equals": shape(4, 4),
        "divisible": shape(9, 2),
        "free": shape(16, 4, spec=P("model")),
        "short spec": shape(4, 16, 3, spec=P("model")),
        "already split": shape(16, 4, spec=P(None, "data")),
        "both taken": shape(8, 8, spec=P("model", "data")),
        "two in one": shape(8, 3, spec=P(("data", "model"))),
        "odd": shape(3, 5),
        "taken": shape(16, 3, spec=P("model")),
        "one": shape(1),
        "scalar": shape(),
        "empty": shape(0, 3),
        "none": None,
    }
    state = jax.eval_shape(amsgrad_jax.scale_by_amsgrad().init, params)
    shardings, unsplit = sharding.zero1_shardings(state, params, GRID)
    entries = jax.tree.map(lambda s: tuple(s.spec), shardings.nu)
    assert entries == {
        "largest": (None, "data", None),
        "first of equals": ("data", None),
        "divisible": (None, "data"),
        "free": ("model", "data"),
        "short spec": ("model", "data", None),
        "already split": (None, "data"),
        "both taken": ("model", "data"),
        "two in one": (("data", "model"),),
        "odd": (),
        "taken": ("model",),
        "one": (),
        "scalar": (),
        "empty": (),
        "none": None,
    }
    assert shardings.mu == shardings.nu == shardings.nu_max
    assert [u for u in unsplit if u.path.startswith("nu/")] == [
        ("nu/odd", (3, 5), 60),
        ("nu/taken", (16, 3), 48),  # of 192 bytes on 4 devices
    ]
    assert len(unsplit) == 3 * 2
    over_both = sharding.zero1_shardings(state, params, GRID, axis=("data", "model")).shardings
    assert over_both.nu["largest"].spec == P(None, ("data", "model"), None)
    assert over_both.nu["free"].spec == P("model", "data")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ours: optax.chain(optax.clip_by_global_norm(1.0), ours, optax.trace(0.9)),
        lambda ours: optax.MultiSteps(ours, 2),
        lambda ours: optax.masked(ours, {"w": True, "v": True, "b": False, "s": False}),
        lambda ours: optax.partition({"a": ours, "b": ours}, dict(w="a", v="b", b="a", s="b")),
        lambda ours: optax.apply_if_finite(ours, 3),
        lambda ours: optax.contrib.schedule_free(ours, 1e-2),
    ],
    ids=["chain", "MultiSteps", "masked", "partition", "apply_if_finite", "schedule_free"],
)
def test_finds_whatever_is_like_params_in_any_chain(wrap):
    optimizer = wrap(amsgrad_jax.amsgrad(1e-2, storage="packed"))
    state = jax.eval_shape(optimizer.init, start())
    shardings, unsplit = sharding.zero1_shardings(state, start(), MESH)
    specs = {(16, 8): P("data", None), (8, 24): P(None, "data")}
    chex.assert_trees_all_equal_structs(shardings, state)
    assert jax.tree.map(lambda s: s.spec, shardings) == jax.tree.map(
        lambda leaf: specs.get(leaf.shape, P()), state
    )
    assert {leaf.shape for leaf in unsplit} <= {(3,)}


def test_a_state_without_places_for_params_is_replicated_and_reported():
    optimizer = optax.chain(optax.flatten(optax.trace(0.9)), amsgrad_jax.amsgrad(1e-2))
    shardings, unsplit = zero1(optimizer, start(), MESH)
    assert shardings[0].trace.spec == P()
    assert unsplit[0] == ("0/trace", (16 * 8 + 8 * 24 + 3 + 1,), 4 * 324)


@every_storage
def test_a_hundred_steps_compile_once_and_move_nothing(storage):
    params = on(MESH, start(), P())
    optimizer = amsgrad_jax.amsgrad(1e-3, storage=storage)
    step, state = jit_with_zero1(optimizer, params, MESH)
    place = lambda batch: on(MESH, batch, P("data"))
    places = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
    first = follow(step, params, state, place, count=1)
    after_one = places(first)
    last = follow(step, *first, place, count=99)
    assert places(last) == after_one == (places(params), zero1(optimizer, params, MESH).shardings)
    assert step._cache_size() == 1


@every_storage
def test_no_device_ever_has_a_whole_moment(storage):
    params = on(MESH, start(), P())
    loss = lambda p, batch: (
        jnp.mean((jnp.tanh(batch[0] @ p["w"]) @ p["v"] - batch[1]) ** 2) + jnp.sum(p["b"] * p["s"])
    )
    step, state = jit_with_zero1(amsgrad_jax.amsgrad(1e-3, storage=storage), params, MESH, loss)
    batch = on(MESH, (normal(5, 64, 16), normal(6, 64, 24)), P("data"))
    compiled = step.lower(params, state, batch).compile()
    on_device = lambda tree: sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    memory = compiled.memory_analysis()
    # A compiler may leave out what the step does not read.
    assert memory.argument_size_in_bytes <= on_device((params, state, batch))
    assert memory.alias_size_in_bytes == on_device(state)
    text = compiled.as_text()
    gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather\(", text)
    # The new parameters, or what is added to them; three moments more would be eight.
    assert sorted(gathered) == [("f32", "16,8"), ("f32", "8,24")]
    assert not re.search(r"all-to-all|collective-permute", text)
    assert re.search(r"all-reduce|reduce-scatter", text)
    if storage == "packed":  # a whole one would be an array of words of this shape
        words = set(re.findall(r"\bu32\[([\d,]*)\]", text))
        assert {"2,8", "8,3"} <= words
        assert not words & {"16,8", "8,24", "24,8"}


# Bytes.


@every_storage
@pytest.mark.parametrize("mesh", [MESH, GRID], ids=["8", "2x4"])
def test_reports_the_bytes_of_real_arrays(storage, mesh):
    specs = {"w": P(), "v": P(None, "model"), "b": P(), "s": P()} if mesh is GRID else P()
    params = on(mesh, start() | {"v": np.zeros((8, 24), jnp.bfloat16)}, specs)
    optimizer = optax.MultiSteps(amsgrad_jax.amsgrad(1e-2, storage=storage), 2)
    out = zero1(optimizer, params, mesh).shardings
    state = jax.jit(optimizer.init, out_shardings=out)(params)
    report = sharding.memory_report(jax.eval_shape(optimizer.init, params), params, mesh)

    def measured(tree):
        held = dict.fromkeys(mesh.devices.flat, 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        (on_each,) = set(held.values())
        return on_each

    fields = ("packed",) if storage == "packed" else ("mu", "nu", "nu_max")
    for name in fields:
        assert report.zero1[name] == measured(optax.tree.get(state, name))
    assert report.zero1["acc_grads"] == measured(state.acc_grads)
    assert sum(report.zero1.values()) == measured(state)
    assert report.params == report.gradients == measured(params)
    whole = optimizer.init(params)  # has the shardings of params
    for name in fields:
        assert report.state[name] == measured(optax.tree.get(whole, name))


def test_reports_what_one_counts_by_hand():
    params = {"w": jnp.zeros((16, 8)), "b": jnp.zeros(3), "z": jnp.zeros(8, jnp.complex64)}
    state = amsgrad_jax.scale_by_amsgrad().init(params)
    report = sharding.memory_report(state, params, 8)
    assert report.params == report.gradients == 4 * 128 + 4 * 3 + 8 * 8
    # The maximum of complex parameters is real; the count has 4 bytes.
    nu = 512 + 12 + 32
    assert report.state == {"count": 4, "mu": 512 + 12 + 64, "nu": nu, "nu_max": nu}
    nu = 64 + 12 + 4  # what has no dimension of 8 is whole
    assert report.zero1 == {"count": 4, "mu": 64 + 12 + 8, "nu": nu, "nu_max": nu}
    real = {name: params[name] for name in ("w", "b")}
    state = amsgrad_jax.scale_by_amsgrad(storage="packed").init(real)
    report = sharding.memory_report(state, real, 8)
    assert report.state == {"count": 4, "packed": 512 + 12}
    assert report.zero1 == {"count": 4, "packed": 64 + 12}


def test_fields_of_a_state_are_not_confused_with_those_of_a_model():
    params = amsgrad_jax.ScaleByAmsgradState(*(jnp.zeros((8, n)) for n in (1, 2, 3, 4)))
    state = jax.eval_shape(amsgrad_jax.scale_by_amsgrad().init, params)
    report = sharding.memory_report(state, params, 8)
    assert report.state == {"count": 4} | dict.fromkeys(("mu", "nu", "nu_max"), 8 * 10 * 4)


@pytest.mark.parametrize(
    ("devices", "gigabytes"),
    [(1, 120), (4, 52.5), (16, 35.6), (64, 31.4), (256, 30.4), (1024, 30.1)],
)
def test_reports_what_the_zero_paper_does(devices, gigabytes):
    # Table 1 there, 7.5 billion parameters in half precision: 12 bytes each for the optimizer's
    # own float32 numbers, which are three in full storage, too.
    params = {"w": jax.ShapeDtypeStruct((1024, 7_324_219), jnp.bfloat16)}
    state = jax.eval_shape(amsgrad_jax.amsgrad(1e-3).init, params)
    report = sharding.memory_report(state, params, devices)
    total = report.params + report.gradients + sum(report.zero1.values())
    np.testing.assert_allclose(total / 1e9, gigabytes, atol=0.05)


@pytest.mark.parametrize(("dtype", "optaxs"), [("float32", 12), ("bfloat16", 6)])
def test_plan_prints_a_table(dtype, optaxs, capsys):
    arguments = ["plan", "--params", "7e9", "--devices", "1", "64", "4096", "--dtype", dtype]
    assert __main__.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    head = re.match(r"([\d.]+)e9 parameters in (\w+): (\d+) layers, width (\d+)", lines[0])
    layers, width = int(head[3]), int(head[4])
    size = 32768 * width + layers * (12 * width**2 + 2 * width) + width
    assert abs(size / 7e9 - 1) < 0.01
    assert head[1] == f"{size / 1e9:.2f}"
    rows = {tuple(line.split()[:2]): [float(x) for x in line.split()[2:]] for line in lines[4:]}
    assert len(rows) == 3 * 3
    for name, per_param in {"full": 12, "packed": 4, "optax.amsgrad": optaxs}.items():
        for devices in (1, 64, 4096):
            *_, state, without = rows[name, str(devices)]
            # Every array of this model has a dimension that these numbers divide.
            np.testing.assert_allclose(without, per_param * size / 1e9, atol=1e-3)
            np.testing.assert_allclose(state, per_param * size / 1e9 / devices, atol=1e-3)


@pytest.mark.parametrize("number", [1e15, 1e30, 1e200])
@pytest.mark.parametrize("devices", [8, 2**31 - 1])
def test_plan_counts_models_of_any_size(number, devices, capsys):
    """By the formula of its help, in integers."""
    assert __main__.main(["plan", "--params", str(number), "--devices", str(devices)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = re.match(r"([\d.]+)e9 parameters in float32: (\d+) layers, width (\d+)", lines[0])
    layers, width = int(head[2]), int(head[3])
    size = 32768 * width + layers * (12 * width**2 + 2 * width) + width
    assert abs(size / number - 1) < 0.01
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines[4:]}
    share = 1 if width % devices else devices
    for name, state in {"full": 12, "packed": 4, "optax.amsgrad": 12}.items():
        per_param = [4, 4, state / share, state]
        expected = [devices, *(size * number / 1e9 for number in per_param)]
        np.testing.assert_allclose(rows[name], expected, rtol=1e-12, atol=1e-3)  # 3 decimals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "1e6"], "must be a number from 1e+08 to 1e+300, such as 7e9, 350M or 70B,"),
        (["--params", "inf"], "or 70B, got 'inf'"),
        (["--params", "nan"], "or 70B, got 'nan'"),
        (["--params", "many"], "or 70B, got 'many'"),
        (["--params", "1e308"], "or 70B, got '1e308'"),
        (["--params", "70X"], "or 70B, got '70X'"),
        (["--params", "7K"], "or 70B, got '7K'"),
        (["--devices", "8,x"], "must be an integer from 1 to 2147483647, got 'x'"),
        (["--devices", "8,,9"], "must be an integer from 1 to 2147483647, got ''"),
        (["--devices", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--devices", "8.5"], "must be an integer from 1 to 2147483647, got '8.5'"),
        (["--devices", "2147483648"], "must be an integer from 1 to 2147483647, got '2147483648'"),
        (["--storage", "x"], "invalid choice: 'x'"),
    ],
)
def test_plan_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["plan", *arguments])
    error = capsys.readouterr().err
    assert f"argument {arguments[0]}: " in error
    assert message in error
    assert not re.search(r"\b_\w+ value", error)  # the name of a function of ours


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--params", "70B", "--devices", "8,64"], ["--params", "7e10", "--devices", "8", "64"]),
        (
            ["--params", "0.35t", "--devices", "8,", "64"],
            ["--params", "350e9", "--devices", "8", "64"],
        ),
        (["--params", "700M"], ["--params", "700_000_000"]),
        (
            ["--params", "7G", "--devices", "1,2", "4"],
            ["--params", "7e9", "--devices", "1", "2", "4"],
        ),
    ],
)
def test_plan_reads_what_people_type(capsys, typed, meant):
    assert __main__.main(["plan", *typed]) == 0
    got = capsys.readouterr().out
    assert __main__.main(["plan", *meant]) == 0
    assert got == capsys.readouterr().out


# It raises instead of guessing.


def test_an_axis_that_the_mesh_lacks():
    for axis in ("model", ("data", "model")):
        with pytest.raises(ValueError, match="axis must be in the mesh, which has 'data'; got 'mo"):
            sharding.zero1_shardings(optax.EmptyState(), start(), MESH, axis=axis)


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        ((), ValueError, r"axis must name at least one axis, and each once; got \(\)"),
        (("data", "data"), ValueError, r"axis must name .* each once; got \('data', 'data'\)"),
        (3, TypeError, "axis must be a name or a sequence of names, got 3"),
        ([["data"]], TypeError, r"axis must be a name or .*, got \[\['data'\]\]"),
    ],
)
def test_an_axis_that_is_none(axis, error, message):
    params = {"w": jnp.zeros((16, 8))}
    state = amsgrad_jax.amsgrad(1e-2).init(params)
    for function in (sharding.zero1_shardings, sharding.memory_report):
        with pytest.raises(error, match=message):
            function(state, params, MESH, axis=axis)


@pytest.mark.parametrize(
    ("state", "params", "message"),
    [
        ("full", {}, "state must have arrays or .*, got 'full' at the root"),
        (optax.EmptyState(), {"w": "x"}, r"params must have arrays or .*, got 'x' at 'w'"),
    ],
)
def test_leaves_that_are_no_arrays(state, params, message):
    for function in (sharding.zero1_shardings, sharding.memory_report):
        with pytest.raises(TypeError, match=message):
            function(state, params, MESH)


def test_more_devices_than_a_sharding_holds():
    mesh = AbstractMesh((2**16, 2**15), ("data", "model"))
    for function in (sharding.zero1_shardings, sharding.memory_report):
        with pytest.raises(ValueError, match="mesh must have at most 2147483647 devices, got 2147"):
            function(optax.EmptyState(), start(), mesh)


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"w": np.zeros((16, 9))}, r"'0' has moments of shape \[16, 8\] at 'w'"),
        ({"other": np.zeros((16, 8))}, r"'0' has moments of shape \[16, 8\] at 'w'"),
        ({"deep": {"w": np.zeros((16, 8))}}, r"'0' has moments of shape \[16, 8\] at 'w'"),
    ],
)
def test_a_state_of_other_params(params, where):
    state = amsgrad_jax.amsgrad(1e-2).init({"w": jnp.zeros((16, 8))})
    with pytest.raises(ValueError, match="state belongs to other parameters: " + where):
        sharding.zero1_shardings(state, params, MESH)


def test_params_on_another_mesh():
    optimizer = amsgrad_jax.amsgrad(1e-2)
    params = on(GRID, {"w": np.zeros((16, 8))}, P())
    other = Mesh(DEVICES[::-1].reshape(2, 4), ("data", "model"))
    for mesh in (MESH, other, AbstractMesh((8,), ("data",))):
        with pytest.raises(ValueError, match=r"params must be on the given mesh.*'w' is on"):
            zero1(optimizer, params, mesh)
    abstract = AbstractMesh((2, 4), ("data", "model"))
    assert zero1(optimizer, params, abstract).shardings[0].mu["w"].spec == P("data", None)


def test_params_with_a_sharding_of_another_kind():
    params = {"w": jnp.zeros(8)}
    state = amsgrad_jax.amsgrad(1e-2).init(params)

    class Leaf:
        shape, dtype, sharding = (8,), jnp.dtype("float32"), "a wish"

    with pytest.raises(TypeError, match=r"params must have a NamedSharding or none.*'w'"):
        sharding.zero1_shardings(state, {"w": Leaf()}, MESH)


@pytest.mark.parametrize(
    ("mesh", "axis"), [(0, "data"), (-8, "data"), (2**31, "data"), (8, ("a", "b")), (8, 3)]
)
def test_a_number_of_devices_is_positive_and_along_one_axis(mesh, axis):
    message = f"mesh must be a number of devices from 1 to 2147483647 along one axis, got {mesh}"
    with pytest.raises(ValueError, match=message):
        sharding.memory_report(optax.EmptyState(), start(), mesh, axis=axis)


@pytest.mark.parametrize("mesh", [8.0, True, None, "data"])
def test_a_mesh_is_a_mesh_or_a_number(mesh):
    for function in (sharding.zero1_shardings, sharding.memory_report):
        with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh"):
            function(optax.EmptyState(), start(), mesh)
