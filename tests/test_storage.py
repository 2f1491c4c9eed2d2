"""Moments in few bytes: what a run with them must keep of a run with float32."""

import contextlib
import dataclasses
import functools
import re

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import COMPACT, FULL, TINY, Storage, codecs, convert_storage
from tests.variants import CONVENTIONS, enable_x64

every_coded = pytest.mark.parametrize("storage", ["compact", "tiny"])
NEAREST = codecs.BFLOAT16_NEAREST
NAIVE = Storage(mu=NEAREST, nu=NEAREST, nu_max=NEAREST)


def steps(optimizer, params, gradients, state=None):
    """Params, updates and states of every step with the given gradients, as stacked trees."""

    @jax.jit
    def run(params, state, gradients):
        def one(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, updates, state)

        return jax.lax.scan(one, (params, state), gradients)[1]

    return run(params, optimizer.init(params) if state is None else state, gradients)


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def fresh(nu, gradients, b2):
    """The average of squares before it was rounded, from the stored ones before each step."""
    before = jnp.concatenate([jnp.zeros_like(nu[:1]), codecs.UNSIGNED16.decode(nu)[:-1]])
    return b2 * before + np.float32(1 - b2) * gradients**2


# What it costs.


@pytest.mark.parametrize(("storage", "size"), [("full", 12), ("compact", 5), ("tiny", 4)])
def test_bytes_per_parameter(storage, size):
    params = {"w": jnp.ones((64, 100)), "b": jnp.ones(7), "half": jnp.ones(3, jnp.bfloat16)}
    state = amsgrad_jax.scale_by_amsgrad(storage=storage).init(params)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state._replace(count=None)))
    assert held == size * (6400 + 7 + 3)
    assert jax.tree.leaves(state._replace(mu=None, nu=None, nu_max=None)) == [state.count]


# The maximum.


@pytest.mark.parametrize("convention", CONVENTIONS)
@every_coded
def test_the_maximum_is_the_code_of_the_true_maximum(storage, convention):
    b2 = 0.99
    scales = jnp.geomspace(1e-9, 1e5, 32)  # beyond both ends of the codes
    gradients = normal(0, 2000, 32) * scales
    optimizer = amsgrad_jax.scale_by_amsgrad(b2=b2, convention=convention, storage=storage)
    _, _, state = steps(optimizer, jnp.zeros(32), gradients)
    nu = fresh(state.nu, gradients, b2)
    if convention == "optax":
        nu /= -jnp.expm1(state.count[:, None] * np.float32(np.log(b2)))
    true = jax.lax.cummax(nu)
    np.testing.assert_array_equal(state.nu_max, codecs.LOG8.encode(true, 0))
    assert jnp.all(jnp.diff(state.nu_max.astype(int), axis=0) >= 0)


@hypothesis.given(
    hnp.arrays(
        np.float32,
        (8, 16),
        elements=st.floats(width=32) | st.floats(-10, 10, width=32) | st.sampled_from([0.0, 1e30]),
    )
)
def test_the_maximum_never_decreases(gradients):
    for storage in (COMPACT, TINY, NAIVE):
        decoded = np.asarray(storage.nu_max.decode(maxima(storage, gradients)))
        np.testing.assert_array_equal(decoded, np.maximum.accumulate(decoded))  # a NaN stays


@functools.partial(jax.jit, static_argnums=0)
def maxima(storage, gradients):
    optimizer = amsgrad_jax.scale_by_amsgrad(b2=0.9, b1=0.5, storage=storage)
    return steps(optimizer, jnp.zeros(16), gradients)[2].nu_max


@every_coded
def test_the_denominator_is_never_below_adams(storage):
    gradients = normal(1, 500, 32) * jnp.geomspace(1e-9, 1e9, 32)
    optimizer = amsgrad_jax.scale_by_amsgrad(b2=0.99, eps=0.0, convention="paper", storage=storage)
    _, updates, state = steps(optimizer, jnp.zeros(32), gradients)
    # The first step has a fresh average of gradients: u = (1-b1) g / sqrt(max).
    nu = fresh(state.nu, gradients, 0.99)
    assert jnp.all(
        jnp.abs(updates[0]) <= 0.1 * jnp.abs(gradients[0]) / jnp.sqrt(nu[0]) * (1 + 1e-6)
    )
    assert jnp.all(codecs.LOG8.decode(state.nu_max) <= 1.143 * jax.lax.cummax(nu))


# The averages.


@pytest.mark.parametrize("b2", [0.999, 0.9999])
def test_averages_do_not_drift(b2):
    size = jnp.geomspace(1e-6, 1e3, 512)
    gradients = jnp.where(jnp.arange(512) % 2 == 0, size, -size)

    @functools.partial(jax.jit, static_argnums=0)
    def after(storage):
        optimizer = amsgrad_jax.scale_by_amsgrad(b2=b2, storage=storage)
        return jax.lax.fori_loop(
            0, 100_000, lambda _, s: optimizer.update(gradients, s)[1], optimizer.init(gradients)
        )

    state = after(COMPACT)
    shares = np.asarray(codecs.UNSIGNED16.decode(state.nu) / gradients**2)
    assert abs(shares.mean() - 1) < 0.01
    momentum = np.asarray(state.mu.astype(jnp.float32) / gradients)
    assert abs(momentum.mean() - 1) < 0.01
    # Rounded to nearest it stands still far from there.
    stuck = np.asarray(after(NAIVE).nu.astype(jnp.float32) / gradients**2)
    assert abs(stuck.mean() - 1) > 0.3


@every_coded
def test_moments_follow_those_of_float32(storage):
    gradients = normal(2, 3000, 256) + 0.3
    run = lambda name: steps(amsgrad_jax.scale_by_amsgrad(storage=name), jnp.zeros(256), gradients)
    _, want_updates, want = run("full")
    _, got_updates, state = run(storage)
    got = jax.jit(jax.vmap(lambda s: convert_storage(s, "full")))(state)
    # Unbiased: the mean over elements of the difference is within its statistical error.
    for name in ("mu", "nu"):
        difference = np.asarray(getattr(got, name)[-1] - getattr(want, name)[-1], np.float64)
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(256)
    # What one rounding adds has a standard deviation of half a unit of the code at most; over
    # the steps of an average the squares add up to 1 / (1 - b1**2). LOG8 has 7.2 % in the root.
    unit = {"compact": 2**-7, "tiny": 2**-3}[storage]
    allowed = 0.072 + unit / 2 * 0.9 / np.sqrt(1 - 0.9**2)
    rms = lambda values: np.sqrt(np.mean(np.square(values[-500:], dtype=np.float64)))
    assert rms(got_updates - want_updates) < allowed * rms(want_updates)


# Repeatable.


@every_coded
def test_the_same_run_twice_is_bitwise_equal(storage):
    params, gradients = {"w": normal(3, 8, 4)}, {"w": normal(4, 50, 8, 4)}
    run = lambda: steps(amsgrad_jax.amsgradw(1e-2, storage=storage), params, gradients)
    chex.assert_trees_all_equal(run(), run())


def explicit_mesh(devices):
    if not hasattr(jax.sharding, "AxisType"):
        pytest.skip("this jax has no explicit axes")
    axis_types = (jax.sharding.AxisType.Explicit,) * devices.ndim
    return jax.sharding.Mesh(devices, ("x", "y"), axis_types=axis_types)


def use(mesh):
    return (getattr(jax, "set_mesh", None) or jax.sharding.use_mesh)(mesh)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@every_coded
def test_a_sharded_run_is_bitwise_equal(storage, explicit):
    params = {"w": normal(5, 16, 6), "v": normal(6, 16, 6)}
    gradients = {"w": normal(7, 20, 16, 6), "v": normal(8, 20, 16, 6)}
    optimizer = amsgrad_jax.amsgrad(1e-2, storage=storage)

    @jax.jit
    def run(params, gradients):
        state = optimizer.init(params)
        for i in range(5):
            gradient = jax.tree.map(lambda g: g[i], gradients)  # noqa: B023
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    want = run(params, gradients)
    devices = np.array(jax.devices("cpu")[:2]).reshape(2, 1)
    spec = jax.sharding.PartitionSpec
    mesh = explicit_mesh(devices) if explicit else jax.sharding.Mesh(devices, ("x", "y"))
    on_mesh = lambda tree, *axes: jax.device_put(
        tree, jax.sharding.NamedSharding(mesh, spec(*axes))
    )
    split = on_mesh(params, "x"), on_mesh(gradients, None, "x")
    with use(mesh) if explicit else contextlib.nullcontext():
        got = run(*split)
    for leaf in jax.tree.leaves((got[0], got[1][0]._replace(count=None))):
        assert leaf.sharding.is_equivalent_to(on_mesh(leaf, "x").sharding, 2)
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


@pytest.mark.skipif(
    not hasattr(jax, "set_mesh"), reason="XLA of that age compiles equal kernels again"
)
@pytest.mark.parametrize("storage", ["compact", "tiny"])
def test_equal_leaves_share_their_kernels(storage):
    # Each distinct kernel costs XLA 20 to 40 ms, and so they must not depend on the leaf.
    optimizer = amsgrad_jax.amsgrad(1e-3, storage=storage)

    def distinct_kernels(leaves):
        params = {f"leaf{i}": jnp.ones((8, 8)) for i in range(leaves)}
        compiled = jax.jit(optimizer.update).lower(params, optimizer.init(params)).compile()
        kernels = re.findall(r"^%\S*computation.*?^}", compiled.as_text(), re.DOTALL | re.MULTILINE)
        # Without the names of instructions, and without what says where they come from.
        return {re.sub(r", metadata=\{[^}]*\}|%[^\s,()]+|\w+(?=: )", "", k) for k in kernels}

    assert 1 < len(distinct_kernels(5)) == len(distinct_kernels(2))


@every_coded
def test_equal_leaves_do_not_share_bits(storage):
    gradient = normal(9, 1000)
    params = {"a": jnp.zeros(1000), "b": jnp.zeros(1000)}
    optimizer = amsgrad_jax.scale_by_amsgrad(storage=storage)
    _, state = jax.jit(optimizer.update)({"a": gradient, "b": gradient}, optimizer.init(params))
    for moment in (state.mu, state.nu):
        differ = jnp.mean(moment["a"] != moment["b"])
        assert 0.2 < differ < 0.8
    assert jnp.all(state.nu_max["a"] == state.nu_max["b"])
    # Nor do the two averages of one element.
    up = codecs.UNSIGNED16.decode(state.nu["a"]) > np.float32(1e-3) * gradient**2
    mu = jax.tree.leaves(convert_storage(state, "full").mu)[0]
    correlation = np.corrcoef(up, jnp.abs(mu) > 0.1 * jnp.abs(gradient))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(1000) or storage == "tiny"  # where mu depends on nu


# What is not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@every_coded
def test_a_bad_gradient_shows_as_in_full(storage, bad):
    gradients = normal(10, 12, 8).at[5, 3].set(bad)

    def seen(name):
        optimizer = amsgrad_jax.scale_by_amsgrad(storage=name)
        updates = steps(optimizer, jnp.zeros(8), gradients)[1]
        return np.isnan(updates), np.asarray(updates == 0)

    (nan, zero), (nan_full, zero_full) = seen(storage), seen("full")
    assert (zero_full if bad == 1e30 else nan_full)[5:, 3].all()
    np.testing.assert_array_equal(nan, nan_full)
    np.testing.assert_array_equal(zero, zero_full)


@every_coded
def test_a_tiny_gradient_moves_as_in_full(storage):
    gradients = normal(11, 20, 8, scale=1e-15)  # squares of 1e-30, below the codes of nu_max
    run = lambda name: steps(
        amsgrad_jax.scale_by_amsgrad(eps=0.0, storage=name), jnp.zeros(8), gradients
    )[1]
    np.testing.assert_allclose(run(storage)[0], run("full")[0], rtol=1e-5)
    assert jnp.all(jnp.isfinite(run(storage)))


# It raises instead of being wrong.


@every_coded
def test_meta_gradients_raise(storage):
    optimizer = amsgrad_jax.amsgrad(0.1, storage=storage)

    def unrolled(x):
        state = optimizer.init(x)
        for _ in range(2):
            updates, state = optimizer.update(2 * x, state)
            x = optax.apply_updates(x, updates)
        return jnp.sum(x)

    for derive in (jax.grad(unrolled), jax.jit(jax.grad(unrolled)), jax.jacfwd(unrolled)):
        with pytest.raises(TypeError, match="cannot be differentiated through"):
            derive(jnp.ones(2))


def test_the_gradient_of_a_loss_beside_the_step_is_no_meta_gradient():
    optimizer = amsgrad_jax.amsgrad(0.1, storage="tiny")
    state = optimizer.init(jnp.ones(2))

    def loss(x):
        _, after = optimizer.update(jax.lax.stop_gradient(2 * x), state)
        return jnp.sum(x**2), after

    gradient, _ = jax.grad(loss, has_aux=True)(jnp.ones(2))
    np.testing.assert_array_equal(gradient, [2, 2])


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.8), (0.9, 0.81), (0.0, 0.99999), (0.5, 0.0)])
def test_tiny_needs_a_bounded_ratio(b1, b2):
    with pytest.raises(ValueError, match=r"b1 = .* and b2 = .* do not fit this storage"):
        amsgrad_jax.scale_by_amsgrad(b1, b2, storage="tiny")
    amsgrad_jax.scale_by_amsgrad(b1, b2, storage="compact")


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.9, 0.9999), (0.0, 0.0), (0.95, 0.999)])
def test_the_ratio_has_the_bound_that_is_checked(b1, b2):
    # The gradients for which the inequality of Cauchy and Schwarz is an equality.
    amsgrad_jax.scale_by_amsgrad(b1, b2, storage="tiny")
    mu = nu = worst = 0.0
    for age in reversed(range(2000)):
        gradient = (b1 / b2) ** age if b2 > 0 else float(age == 0)
        mu, nu = b1 * mu + (1 - b1) * gradient, b2 * nu + (1 - b2) * gradient**2
        worst = max(worst, mu / np.sqrt(nu) if nu > 0 else 0.0)
    assert worst <= TINY.mu.ratio_bound
    room = 1 - b1**2 / b2 if b2 > 0 else 1.0
    np.testing.assert_allclose(worst, (1 - b1) / np.sqrt((1 - b2) * room), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(mu="bfloat16"), TypeError, "mu must be an amsgrad_jax.codecs.Codec, got 'bfloat16'"),
        (dict(nu=codecs.RATIO8), ValueError, "nu cannot have a codec for mu/√nu"),
        (dict(nu_max=codecs.RATIO8), ValueError, "nu_max cannot have a codec for mu/√nu"),
        (dict(nu_max=codecs.UNSIGNED16), ValueError, "nu_max must have a codec that rounds to"),
        (dict(full_below=-1), ValueError, "full_below must not be negative, got -1"),
        (dict(full_below=1.5), TypeError, "full_below must be an int, got 1.5"),
        (dict(full_below=True), TypeError, "full_below must be an int, got True"),
    ],
)
def test_bad_storages(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(COMPACT, **change)


@pytest.mark.parametrize(
    ("made", "used"), [("full", "tiny"), ("tiny", "full"), ("compact", "tiny")]
)
def test_a_state_of_another_storage(made, used):
    params = {"w": jnp.ones(3)}
    state = amsgrad_jax.scale_by_amsgrad(storage=made).init(params)
    with pytest.raises(TypeError, match=r"the state holds mu at \['w'\] as .*convert_storage"):
        amsgrad_jax.scale_by_amsgrad(storage=used).update(params, state)


# Some leaves in full.


@every_coded
def test_small_leaves_are_held_in_full(storage):
    params = {"w": normal(12, 10, 10), "b": normal(13, 10), "s": jnp.ones(())}
    mixed = dataclasses.replace({"compact": COMPACT, "tiny": TINY}[storage], full_below=100)
    gradients = jax.tree.map(lambda p: jnp.stack([p, -2 * p, p]), params)
    run = lambda storage: steps(amsgrad_jax.amsgrad(1e-2, storage=storage), params, gradients)
    after, _, (state, _) = run(mixed)
    full, coded = run("full"), run(storage)
    for name, like in {"w": coded, "b": full, "s": full}.items():
        chex.assert_trees_all_equal(after[name], like[0][name])
        for moment in ("mu", "nu", "nu_max"):
            chex.assert_trees_all_equal(
                getattr(state, moment)[name], getattr(like[2][0], moment)[name]
            )


@every_coded
def test_partition_chooses_leaves(storage):
    params = {"w": normal(12, 10, 10), "b": normal(13, 10)}
    optimizer = optax.partition(
        {"full": amsgrad_jax.amsgrad(1e-2), "coded": amsgrad_jax.amsgrad(1e-2, storage=storage)},
        {"w": "coded", "b": "full"},
    )
    gradients = jax.tree.map(lambda p: jnp.stack([p, -2 * p, p]), params)
    got = steps(optimizer, params, gradients)[0]
    want = steps(amsgrad_jax.amsgrad(1e-2, storage=storage), params, gradients)[0]
    # The leaf keeps its path in a partition, hence its bits.
    chex.assert_trees_all_equal(got["w"], want["w"])
    held = {leaf.dtype.name for leaf in jax.tree.leaves(optimizer.init(params))}
    assert held >= {"uint8", "float32"}


@every_coded
def test_flattened(storage):
    params = {"w": normal(12, 10, 10), "b": normal(13, 10)}
    optimizer = optax.flatten(amsgrad_jax.scale_by_amsgrad(storage=storage))
    state = optimizer.init(params)
    assert state.nu_max.shape == (110,)
    updates, _ = optimizer.update(params, state)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.sign, params), rtol=1e-4)


def test_float64_is_computed_in_float64():
    with enable_x64(True):
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(1, 100)))
        run = lambda name: steps(
            amsgrad_jax.scale_by_amsgrad(storage=name), jnp.zeros(100), gradients
        )[1]
        assert run("tiny").dtype == jnp.float64
        np.testing.assert_allclose(run("tiny"), run("full"), rtol=1e-12)


# From one storage to another.


def trained(optimizer, params, count=30, state=None, seed=14):
    gradients = jax.tree.map(lambda p: normal(seed, count, *p.shape) + 0.5, params)
    params, _, states = steps(optimizer, params, gradients, state)
    return jax.tree.map(lambda leaf: leaf[-1], (params, states))


PARAMS = {"w": normal(15, 16, 4), "none": None, "empty": jnp.zeros((0, 2)), "s": jnp.ones(())}


@every_coded
def test_to_codes_and_back_is_within_their_bounds(storage):
    _, state = trained(amsgrad_jax.scale_by_amsgrad(), PARAMS)
    coded = convert_storage(state, storage)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        coded, amsgrad_jax.scale_by_amsgrad(storage=storage).init(PARAMS)
    )
    back = convert_storage(coded, "full")
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)
    assert back.count == state.count == 30
    chex.assert_trees_all_close(back.nu, state.nu, rtol=2**-9)
    chex.assert_trees_all_close(back.nu_max, state.nu_max, rtol=0.143)
    ratios = jax.tree.map(lambda m, v: m / jnp.sqrt(v), state.mu, state.nu)
    bound = 2**-8 if storage == "compact" else (2**-9 + jnp.abs(ratios["w"])) / 16
    error = jnp.abs(back.mu["w"] - state.mu["w"]) / jnp.sqrt(state.nu["w"])
    assert jnp.all(error <= 1.01 * jnp.maximum(bound, 2**-8 * jnp.abs(ratios["w"])))


@pytest.mark.parametrize("other", ["full", "compact", "tiny"])
@every_coded
def test_what_is_decoded_is_encoded_as_the_same_codes(storage, other):
    _, state = trained(amsgrad_jax.scale_by_amsgrad(storage=storage), PARAMS)
    there_and_back = convert_storage(convert_storage(state, other), storage)
    if other != "tiny" or storage == "tiny":  # tiny's mu is coarser
        chex.assert_trees_all_equal(there_and_back, state)
    chex.assert_trees_all_equal(there_and_back.nu, state.nu)
    chex.assert_trees_all_equal(there_and_back.nu_max, state.nu_max)


def test_a_running_optimizer_changes_its_storage():
    wrap = lambda storage: optax.chain(
        optax.clip_by_global_norm(100.0),
        optax.masked(
            optax.inject_hyperparams(amsgrad_jax.amsgradw)(1e-2, storage=storage),
            {"w": True, "none": None, "empty": True, "s": False},
        ),
    )
    params, state = trained(wrap("full"), PARAMS)
    full_end, _ = trained(wrap("full"), params, state=state, seed=16)
    for storage in ("compact", "tiny"):
        coded = jax.jit(lambda state, storage=storage: convert_storage(state, storage))(state)
        end, after = trained(wrap(storage), params, state=coded, seed=16)
        way = jnp.linalg.norm(full_end["w"] - params["w"])
        assert jnp.linalg.norm(end["w"] - full_end["w"]) < 0.1 * way
        chex.assert_trees_all_equal_shapes_and_dtypes(after, coded)


def test_storages_of_ones_own_are_named():
    optimizer = amsgrad_jax.amsgrad(1e-2, storage=NAIVE)
    _, state = trained(optimizer, PARAMS)
    with pytest.raises(TypeError, match="the state holds nu at .* as bfloat16"):
        convert_storage(state, "full")
    full = convert_storage(state, FULL, from_storage=NAIVE)
    chex.assert_trees_all_equal(convert_storage(full, NAIVE), state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(state=(optax.EmptyState(),), storage="full"), ValueError, "found no amsgrad_jax"),
        (dict(storage="half"), ValueError, "unknown storage 'half'"),
        (dict(storage="full", from_storage="half"), ValueError, "unknown storage 'half'"),
        (
            dict(storage="full", from_storage="tiny"),
            TypeError,
            r"the state holds mu at \['empty'\]",
        ),
    ],
)
def test_bad_conversions(arguments, error, message):
    state = amsgrad_jax.amsgrad(1e-2).init(PARAMS)
    with pytest.raises(error, match=message):
        convert_storage(**({"state": state} | arguments))


# Parameters in bfloat16.


def test_stochastic_apply_updates_rounds_to_a_neighbour_and_is_right_on_average():
    params = {"w": normal(17, 100, 100).astype(jnp.bfloat16)}
    updates = {"w": normal(18, 100, 100, scale=1e-3)}
    exact = params["w"].astype(jnp.float32) + updates["w"]
    apply = jax.jit(amsgrad_jax.stochastic_apply_updates)
    results = [apply(params, updates, count)["w"] for count in range(64)]
    for got in results[:4]:
        assert got.dtype == jnp.bfloat16
        unit = 2.0 ** (jnp.floor(jnp.log2(jnp.abs(exact))) - 7)
        error = np.asarray((got.astype(jnp.float32) - exact) / unit, np.float64)
        assert np.abs(error).max() < 1.001
        assert abs(error.mean()) < 4 * error.std() / 100
    mean = np.mean([np.asarray(got, np.float64) for got in results], axis=0)
    # Of 64 evenly spread bits the mean is within a unit over 64, give or take a few.
    assert np.abs((mean - exact) / unit).max() < 4 / 64
    chex.assert_trees_all_equal(apply(params, updates, 3)["w"], results[3])


def test_stochastic_apply_updates_leaves_other_leaves_to_optax():
    params = {"f": normal(19, 3), "n": None, "h": jnp.ones(2, jnp.float16), "b": jnp.bfloat16(1)}
    updates = {"f": normal(20, 3), "n": None, "h": jnp.ones(2), "b": jnp.float32(2)}
    got = amsgrad_jax.stochastic_apply_updates(params, updates, 0)
    chex.assert_trees_all_equal(got, optax.apply_updates(params, updates))
    chex.assert_trees_all_equal_dtypes(got, params)


def test_stochastic_apply_updates_refuses_what_it_cannot_do():
    one = jnp.ones(2, jnp.bfloat16)
    for count in (1.5, jnp.ones(2, jnp.int32), None):
        with pytest.raises(TypeError, match="count must be an integer scalar"):
            amsgrad_jax.stochastic_apply_updates(one, one, count)
    total = lambda u: jnp.sum(amsgrad_jax.stochastic_apply_updates(one, u, 0).astype(jnp.float32))
    with pytest.raises(TypeError, match="cannot be differentiated through"):
        jax.grad(total)(jnp.ones(2))


# On disk.


@every_coded
def test_a_checkpoint_of_codes_goes_on_to_the_same_bits(storage, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = {"w": normal(21, 8, 4)}
    optimizer = amsgrad_jax.amsgradw(1e-2, storage=storage)
    halfway = trained(optimizer, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "halfway", halfway)
        checkpointer.wait_until_finished()
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            halfway,
        )
        restored = checkpointer.restore(tmp_path / "halfway", like)
    chex.assert_trees_all_equal(restored, halfway)
    end = lambda run: trained(optimizer, run[0], state=run[1], seed=22)
    chex.assert_trees_all_equal(end(restored), end(halfway))
