"""Moments in one word: what a packed run must keep of a run with float32 moments."""

import contextlib
import copy
import functools
import pickle
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
from amsgrad_jax import (
    PackedAmsgradState,
    _conventions,
    _rule,
    convert_storage,
    diagnostics,
    interop,
    remedies,
)
from tests import reference
from tests.variants import CONVENTIONS, enable_x64

in_full = jax.jit(lambda state: convert_storage(state, "full"))


def scaler(storage="packed", **arguments):
    return amsgrad_jax.scale_by_amsgrad(storage=storage, **arguments)


@functools.lru_cache(maxsize=8)
def compiled_steps(optimizer):
    @jax.jit
    def run(params, state, gradients):
        def one(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, updates, state)

        return jax.lax.scan(one, (params, state), gradients)[1]

    return run


def steps(optimizer, params, gradients, state=None):
    """Params, updates and states of every step with the given gradients, as stacked trees."""
    state = optimizer.init(params) if state is None else state
    return compiled_steps(optimizer)(params, state, gradients)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def moments(states):
    """The float64 moments of stacked packed states."""
    full = jax.jit(jax.vmap(lambda state: convert_storage(state, "full")))(states)
    return [np.asarray(tree, np.float64) for tree in full[1:]]


# What it costs, and what it is.


@pytest.mark.parametrize(("storage", "size"), [("full", 12), ("packed", 4)])
def test_bytes_per_parameter(storage, size):
    params = {"w": jnp.ones((64, 100)), "b": jnp.ones(7), "half": jnp.ones(3, jnp.bfloat16)}
    state = scaler(storage).init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state[1:])) == size * (6400 + 7 + 3)


def test_a_packed_state_has_one_word_like_each_parameter():
    params = {"w": jnp.ones((2, 3)), "none": None, "s": jnp.ones((), jnp.float16)}
    state = scaler().init(params)
    assert isinstance(state, PackedAmsgradState)
    assert state._fields == ("count", "packed")
    chex.assert_trees_all_equal_structs(state.packed, params)
    chex.assert_trees_all_equal_shapes(state.packed, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.packed)} == {"uint32"}
    for same in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        chex.assert_trees_all_equal(
            scaler().update(params, same), scaler().update(params, state), strict=True
        )


# The step is a function of the stored word.


@pytest.mark.optimized  # without, XLA of jaxlib 0.12 rounds these two programs in two ways
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_update_is_that_of_the_moments_that_are_stored(convention, nesterov):
    arguments = dict(b1=0.9, b2=0.99, eps=1e-3, eps_root=1e-4)
    gradients = normal(0, 40, 64) * jnp.geomspace(1e-3, 1e3, 64)
    optimizer = scaler(convention=convention, nesterov=nesterov, **arguments)
    _, updates, states = steps(optimizer, jnp.zeros(64), gradients)
    full = jax.jit(jax.vmap(lambda state: convert_storage(state, "full")))(states)

    @jax.jit
    def direction(t, gradient, stored):
        c = _rule.coefficients(
            t,
            **arguments,
            convention=_conventions.resolve(convention),
            nesterov=nesterov,
            dtype=jnp.dtype("float32"),
        )
        return _rule.direction(gradient, stored, c, nesterov=nesterov)

    for t in range(40):
        stored = _rule.Moments(*(moment[t] for moment in full[1:]))
        got = direction(full.count[t], gradients[t], stored)
        # XLA is free to contract either product of Nesterov's sum.
        allowed = 1e-6 if nesterov else 0
        np.testing.assert_allclose(got, updates[t], rtol=allowed, atol=allowed)
        # And with the float64 formulas, from moments that the gradient makes to these.
        g = np.asarray(gradients[t], np.float64)
        mu, _, nu_max = (np.asarray(moment, np.float64) for moment in stored)
        before = reference.Moments((mu - 0.1 * g) / 0.9, -0.01 * g**2 / 0.99, nu_max)
        want, _ = reference.step(convention, g, before, t + 1, nesterov=nesterov, **arguments)
        np.testing.assert_allclose(updates[t], want, rtol=3e-6, atol=1e-6)


# The maximum.


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_maximum_is_the_rounded_true_maximum(convention):
    b2 = 0.99
    gradients = normal(0, 2000, 32) * jnp.geomspace(1e-15, 1e15, 32)
    states = steps(scaler(b2=b2, convention=convention), jnp.zeros(32), gradients)[2]
    _, nu, nu_max = moments(states)
    # The average before it was rounded, from the stored one before each step.
    before = np.concatenate([np.zeros((1, 32)), nu[:-1]])
    fresh = b2 * before + (1 - b2) * np.asarray(gradients, np.float64) ** 2
    if convention == "optax":
        fresh /= -np.expm1(np.arange(1, 2001)[:, None] * np.log(b2))
    true = np.sqrt(np.maximum.accumulate(fresh))
    # Four bits of mantissa, to nearest, by float64 arithmetic. Where the root is within float32
    # of the middle between two, both will do.
    mantissa, exponent = np.frexp(true)
    middle = np.abs(mantissa * 32 % 1 - 0.5) < 1e-5
    want = np.ldexp(np.round(mantissa * 32) / 32, exponent)
    np.testing.assert_array_equal(np.sqrt(nu_max)[~middle], want[~middle])
    assert middle.mean() < 1e-3
    assert np.all(np.diff(nu_max, axis=0) >= 0)


EXTREME = st.sampled_from(
    [0.0, 1e-30, 1e-12, 1.0, -1.0, 1e12, 1e30, -1e30, np.nan, np.inf, -np.inf]
)
AWKWARD = hnp.arrays(np.float32, (8, 16), elements=EXTREME | st.floats(-10, 10, width=32))


@jax.jit
def awkward(gradients):
    run = lambda storage: steps(scaler(storage, b1=0.5, b2=0.9), jnp.zeros(16), gradients)[1:]
    updates, states = run("packed")
    return run("full"), (updates, jax.vmap(lambda s: convert_storage(s, "full"))(states))


@hypothesis.given(AWKWARD)
def test_what_is_not_finite_shows_as_in_full(gradients):
    (full_updates, full), (updates, packed) = jax.device_get(awkward(gradients))
    np.testing.assert_array_equal(np.isnan(updates), np.isnan(full_updates))
    assert not np.any(np.isinf(updates))
    np.testing.assert_array_equal(np.isfinite(packed.nu_max), np.isfinite(full.nu_max))
    frozen = np.isinf(full.nu_max) & np.isfinite(full.mu)  # an overflow: the update is 0
    np.testing.assert_array_equal(updates[frozen], 0)
    unseen = full.nu_max == 0
    np.testing.assert_array_equal(packed.nu_max[unseen], 0)
    np.testing.assert_array_equal(updates[unseen], 0)
    np.testing.assert_array_equal(packed.nu_max, np.maximum.accumulate(packed.nu_max))


# The averages.


def after(optimizer, gradient, count, start=None):
    """The full moments after so many steps; ``gradient`` is a function of the step."""

    @jax.jit
    def run(state):
        step = lambda t, state: optimizer.update(gradient(t), state)[1]
        return convert_storage(jax.lax.fori_loop(0, count, step, state), "full")

    return run(optimizer.init(gradient(0)) if start is None else start)


@pytest.mark.optimized
@pytest.mark.parametrize("b2", [0.999, 0.9999])
def test_averages_do_not_drift(b2):
    size = jnp.geomspace(1e-6, 1e3, 512)
    gradients = jnp.where(jnp.arange(512) % 2 == 0, size, -size)
    state = after(scaler(b2=b2), lambda t: gradients, 100_000)
    shares = np.asarray(state.nu / gradients**2, np.float64)
    # From one code to the next: half a unit of 2**-10 in the root.
    assert abs(shares.mean() - 1) < 1e-3
    assert np.abs(shares - 1).max() < 0.01
    momentum = np.asarray(state.mu / gradients, np.float64)
    assert abs(momentum.mean() - 1) < 4 * momentum.std() / np.sqrt(512)


@pytest.mark.optimized
@pytest.mark.parametrize("b2", [0.99, 0.999])
@pytest.mark.parametrize("kind", ["constant", "normal"])
def test_nu_is_right_far_below_its_maximum(b2, kind):
    # nu is 1 already and stays there; its code k is about 1024 over the slowdown, at most twice.
    slowdowns = np.array([3, 30, 100, 300, 1000])
    ones = jnp.ones((len(slowdowns), 1000))
    nu_max = ones * jnp.float32(slowdowns[:, None] ** 2)
    start = amsgrad_jax.ScaleByAmsgradState(jnp.int32(1000), ones, ones, nu_max)
    gradient = {
        "constant": lambda t: ones,
        "normal": lambda t: jax.random.normal(jax.random.key(t), (1000,)) * ones,
    }[kind]
    count = round(10 / (1 - b2))  # ten time constants
    state = after(scaler(b2=b2), gradient, count, start=convert_storage(start, "packed"))
    nu = np.asarray(state.nu, np.float64).mean(axis=1)
    # Steps up are larger by 1/(2k) of themselves, steps down smaller. With chi-squared
    # gradients, of mean absolute deviation 0.97, both make nu larger by 1/(2k).
    code = 1024 / slowdowns
    bias = 0.97 / (2 * code) if kind == "normal" else 0
    start_error = 1.02 / code  # half a unit of the root, in which constant gradients stay
    assert np.all(abs(nu - 1) < 0.01 + bias + start_error)
    rows = lambda array: dict(zip(map(str, slowdowns), array, strict=True))
    moments = {field: rows(getattr(state, field)) for field in ("mu", "nu", "nu_max")}
    report = diagnostics.max_report(state._replace(**moments))
    for slowdown, error in zip(slowdowns, start_error, strict=True):
        expected = pytest.approx(slowdown, rel=0.05 + error)
        assert report[f"{slowdown}/slowdown_q50"] == expected


@pytest.mark.parametrize("slowdown", [30, 1000])
def test_a_packed_reset_after_a_spike_is_that_of_full(slowdown):
    spike = lambda t: jnp.where(t == 10, 10.0 * slowdown, 1.0) * jnp.ones(500)

    def next_update(storage):
        optimizer = scaler(storage, b2=0.99)
        step = lambda t, state: optimizer.update(spike(t), state)[1]
        state = jax.lax.fori_loop(0, 2500, step, optimizer.init(jnp.ones(500)))
        return optimizer.update(jnp.ones(500), remedies.reset_max(state))[0]

    updates = {storage: next_update(storage) for storage in ("full", "packed")}
    np.testing.assert_allclose(updates["full"], 1, rtol=1e-3)
    # A code of 1 or 2 is all that is left of nu: at most half a unit of it is missing.
    allowed = 0.1 + slowdown / 1024
    assert jnp.abs(updates["packed"].mean() - 1) < allowed
    assert jnp.all((updates["packed"] > 0.3) & (updates["packed"] < 2.2))


@pytest.mark.optimized
def test_the_maximum_does_not_collect_the_noise_of_rounding():
    scales = jnp.exp2(jnp.linspace(0, 1, 512))
    gradient = lambda t: scales * jax.random.normal(jax.random.key(t), (512,))
    optimizers = [
        scaler(storage, b2=b2) for b2 in (0.99, 0.999, 0.9999) for storage in ("packed", "full")
    ]

    def step(t, states):
        drawn = gradient(t)
        return [
            optimizer.update(drawn, state)[1]
            for optimizer, state in zip(optimizers, states, strict=True)
        ]

    states = [optimizer.init(scales) for optimizer in optimizers]
    states = jax.jit(lambda states: jax.lax.fori_loop(0, 20_000, step, states))(states)
    maxima = [np.asarray(in_full(state).nu_max, np.float64) for state in states]
    for got, want in zip(maxima[::2], maxima[1::2], strict=True):
        excess = np.sqrt(got / want) - 1
        # Four bits of mantissa have a standard deviation of 1.3 % over an octave.
        assert abs(excess.mean()) < 0.005
        assert np.abs(excess).max() < 0.06


def test_moments_follow_those_of_float32():
    gradients = normal(2, 3000, 256) + 0.3
    run = lambda storage: steps(scaler(storage), jnp.zeros(256), gradients)
    _, want_updates, want = run("full")
    _, updates, states = run("packed")
    mu, nu, _ = moments(states)
    # Unbiased: the mean over elements of the difference is within its statistical error.
    for got, name in ((mu, "mu"), (nu, "nu")):
        difference = got[-1] - np.asarray(getattr(want, name)[-1], np.float64)
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(256)
    # The root of the maximum is off by 1/32 at most, mu by half a unit of 1/16 with squares that
    # add up to 1 / (1 - b1**2).
    rms = lambda values: np.sqrt(np.mean(np.square(values[-500:], dtype=np.float64)))
    allowed = 1 / 32 + (1 / 32) * 0.9 / np.sqrt(1 - 0.9**2)
    assert rms(updates - want_updates) < allowed * rms(want_updates)


# Repeatable.


def test_the_same_run_twice_is_bitwise_equal():
    params, gradients = {"w": normal(3, 8, 4)}, {"w": normal(4, 50, 8, 4)}
    run = lambda: steps(amsgrad_jax.amsgradw(1e-2, storage="packed"), params, gradients)
    chex.assert_trees_all_equal(run(), run())


def explicit_mesh(devices):
    if not hasattr(jax.sharding, "AxisType"):
        pytest.skip("this jax has no explicit axes")
    axis_types = (jax.sharding.AxisType.Explicit,) * devices.ndim
    return jax.sharding.Mesh(devices, ("x", "y"), axis_types=axis_types)


def use(mesh):
    return (getattr(jax, "set_mesh", None) or jax.sharding.use_mesh)(mesh)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_a_sharded_run_is_bitwise_equal(explicit):
    params = {"w": normal(5, 16, 6), "v": normal(6, 16, 6)}
    gradients = {"w": normal(7, 20, 16, 6), "v": normal(8, 20, 16, 6)}
    optimizer = amsgrad_jax.amsgrad(1e-2, storage="packed")

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
    for leaf in jax.tree.leaves((got[0], got[1][0].packed)):
        assert leaf.sharding.is_equivalent_to(on_mesh(leaf, "x").sharding, 2)
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


def compiled(optimizer, params):
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


@pytest.mark.skipif(
    not hasattr(jax, "set_mesh"), reason="XLA of that age compiles equal kernels again"
)
def test_equal_leaves_share_their_kernels():
    # Each distinct kernel costs XLA 20 to 40 ms, and so they must not depend on the leaf.
    optimizer = amsgrad_jax.amsgrad(1e-3, storage="packed")

    def distinct_kernels(leaves):
        text = compiled(optimizer, {f"leaf{i}": jnp.ones((8, 8)) for i in range(leaves)}).as_text()
        kernels = re.findall(r"^%\S*computation.*?^}", text, re.DOTALL | re.MULTILINE)
        # Without the names of instructions, and without what says where they come from.
        return {re.sub(r", metadata=\{[^}]*\}|%[^\s,()]+|\w+(?=: )", "", k) for k in kernels}

    assert 1 < len(distinct_kernels(20)) <= len(distinct_kernels(4))


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="XLA of that age fuses otherwise")
@pytest.mark.parametrize("shape", [(40_000,), (200, 300), (3, 4, 50, 60)], ids=str)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_xla_for_cpu_makes_two_loops_without_a_temporary(convention, shape):
    optimizer = amsgrad_jax.amsgrad(1e-3, convention=convention, storage="packed")
    program = compiled(optimizer, jax.ShapeDtypeStruct(shape, jnp.float32))
    text = program.as_text()
    entry = text[text.index("\nENTRY") :]
    size = re.escape(f"[{','.join(map(str, shape))}]")
    made = re.findall(rf"= \w+{size}\{{[\d,]*\}} (\w+)\(", entry)
    assert sorted(made) == ["fusion", "fusion", "parameter", "parameter", "parameter"]
    assert program.memory_analysis().temp_size_in_bytes < 1024  # scalars


def test_equal_leaves_do_not_share_bits():
    gradient = normal(9, 1000)
    params = {"a": jnp.zeros(1000), "b": jnp.zeros(1000)}
    optimizer = scaler()
    _, state = jax.jit(optimizer.update)({"a": gradient, "b": gradient}, optimizer.init(params))
    full = in_full(state)
    for moment in (full.mu, full.nu):
        differ = jnp.mean(moment["a"] != moment["b"])
        assert 0.2 < differ < 0.8
    assert jnp.all(full.nu_max["a"] == full.nu_max["b"])


# The flags of JAX, and other dtypes.


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_strict_promotion_of_ranks_and_dtypes(storage):
    optimizer = amsgrad_jax.amsgradw(1e-2, storage=storage)
    params = {"w": jnp.ones((3, 4)), "h": jnp.ones((2, 3, 4), jnp.bfloat16), "s": jnp.ones(())}

    def shapes():  # promotion is a matter of tracing
        step = lambda params: optimizer.update(params, optimizer.init(params), params)
        whole = lambda params: amsgrad_jax.stochastic_apply_updates(params, step(params)[0], 3)
        return jax.eval_shape(step, params), jax.eval_shape(whole, params)

    want = shapes()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert shapes() == want


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_gradients_of_every_dtype_make_the_same_words(dtype):
    with enable_x64(dtype == "float64"):
        gradients = normal(11, 30, 50).astype(jnp.bfloat16).astype(dtype)
        _, updates, state = steps(scaler(), jnp.zeros(50, dtype), gradients)
        _, want, want_state = steps(scaler(), jnp.zeros(50, "float32"), gradients.astype("float32"))
    assert updates.dtype == dtype
    # In float64 a sum can be rounded to another word now and then.
    same = np.mean(np.asarray(state.packed) == np.asarray(want_state.packed))
    assert same == 1 if dtype != "float64" else same > 0.5
    if dtype != "float64":
        np.testing.assert_array_equal(updates, want.astype(dtype))


def test_float64_is_computed_in_float64():
    with enable_x64(True):
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(5, 100)))
        _, updates, states = steps(scaler(convention="paper"), jnp.zeros(100), gradients)
        mu, _, nu_max = moments(states)
    assert updates.dtype == jnp.float64
    np.testing.assert_allclose(updates, mu / (np.sqrt(nu_max) + 1e-8), rtol=1e-15)


def test_complex_parameters_are_refused_and_split():
    params = {"z": jnp.ones(3, jnp.complex64)}
    with pytest.raises(TypeError, match=r"params must be real .* 'z' is complex64\[3\].*split_"):
        scaler().init(params)
    with pytest.raises(TypeError, match="gradients must be real .*split_real_and_imaginary"):
        scaler().update(params, scaler().init({"z": jnp.ones(3)}))
    with pytest.raises(TypeError, match="the moments must be real"):
        convert_storage(scaler("full").init(params), "packed")
    optimizer = optax.contrib.split_real_and_imaginary(scaler())
    updates, _ = optimizer.update(params, optimizer.init(params))
    np.testing.assert_allclose(updates["z"], 1, rtol=0.095)  # the imaginary part has no gradient


# It raises instead of being wrong.


def test_meta_gradients_raise():
    optimizer = amsgrad_jax.amsgrad(0.1, storage="packed")

    def unrolled(x):
        state = optimizer.init(x)
        for _ in range(2):
            updates, state = optimizer.update(2 * x, state)
            x = optax.apply_updates(x, updates)
        return jnp.sum(x)

    for derive in (jax.grad(unrolled), jax.jit(jax.grad(unrolled)), jax.jacfwd(unrolled)):
        with pytest.raises(TypeError, match="cannot be differentiated through"):
            derive(jnp.ones(2))


@pytest.mark.parametrize("name", ["b1", "b2", "eps", "eps_root"])
def test_derivatives_by_hyperparameters_raise(name):
    def update(value):
        optimizer = scaler(**{name: value})
        return jnp.sum(optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))[0])

    with pytest.raises(TypeError, match="cannot be differentiated through"):
        jax.grad(update)(0.125)


def test_the_gradient_of_a_loss_beside_the_step_is_no_meta_gradient():
    optimizer = amsgrad_jax.amsgrad(0.1, storage="packed")
    state = optimizer.init(jnp.ones(2))

    def loss(x):
        _, after = optimizer.update(jax.lax.stop_gradient(2 * x), state)
        return jnp.sum(x**2), after

    gradient, _ = jax.grad(loss, has_aux=True)(jnp.ones(2))
    np.testing.assert_array_equal(gradient, [2, 2])


# For b1 = 0 the ratio is 1/√(1-b2): that of 0.99993 is 119.5, that of 0.99993 - 1e-6 is 118.7. For
# b1 = 0.9 it is 206 where b2 is 0.810001, 21 where it is 0.8101 and 1.2 where it is 0.85.
@pytest.mark.parametrize(
    ("b1", "b2"), [(0.9, 0.8), (0.9, 0.81), (0.9, 0.810001), (0.0, 0.99993), (0.5, 0.0)]
)
def test_packed_needs_a_bounded_ratio(b1, b2):
    with pytest.raises(ValueError, match=r"b1 = .* and b2 = .* do not fit storage='packed'"):
        scaler(b1=b1, b2=b2)
    scaler("full", b1=b1, b2=b2)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.8101), (0.9, 0.85)])
def test_packed_takes_a_b1_above_b2(b1, b2):
    scaler(b1=b1, b2=b2)


@pytest.mark.parametrize(
    ("b1", "b2"), [(0.9, 0.99), (0.9, 0.9999), (0.0, 0.0), (0.95, 0.999), (0.0, 0.999929)]
)
def test_the_ratio_has_the_bound_that_is_checked(b1, b2):
    # The gradients for which the inequality of Cauchy and Schwarz is an equality.
    gradients = [(b1 / b2) ** age if b2 > 0 else float(age == 0) for age in reversed(range(2000))]
    mu = nu = worst = 0.0
    for gradient in gradients:
        mu, nu = b1 * mu + (1 - b1) * gradient, b2 * nu + (1 - b2) * gradient**2
        worst = max(worst, mu / np.sqrt(nu) if nu > 0 else 0.0)
    room = 1 - b1**2 / b2 if b2 > 0 else 1.0
    np.testing.assert_allclose(worst, (1 - b1) / np.sqrt((1 - b2) * room), rtol=1e-3)
    # And the word has room for it.
    got = after(scaler(b1=b1, b2=b2), lambda t: jnp.asarray(gradients, jnp.float32)[t, None], 2000)
    np.testing.assert_allclose(got.mu[0], mu, rtol=0.05)


@pytest.mark.parametrize(("made", "used"), [("full", "packed"), ("packed", "full")])
def test_a_state_of_the_other_storage_is_refused(made, used):
    params = {"w": jnp.ones(3)}
    state = scaler(made).init(params)
    with pytest.raises(TypeError, match=rf"convert_storage\(state, '{used}'\)"):
        scaler(used).update(params, state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8"])
@pytest.mark.parametrize("storage", ["full", "packed"])
def test_a_state_that_was_cast_is_refused(storage, dtype):
    params = {"w": jnp.ones(3)}
    state = scaler(storage).init(params)
    cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    everything, moments = cast(state), type(state)(state.count, *map(cast, state[1:]))
    for wrong in [everything, moments] if (storage, dtype) != ("full", "float32") else [everything]:
        for use in (
            lambda state: scaler(storage).update(params, state),
            lambda state: convert_storage(state, "full"),
            lambda state: convert_storage(state, "packed"),
            diagnostics.max_report,
            remedies.reset_max,
        ):
            with pytest.raises(TypeError, match="the state was cast.*convert_storage"):
                use(wrong)


def test_a_state_of_another_library_is_refused():
    params = {"w": jnp.ones(3)}
    for state in (optax.scale_by_amsgrad().init(params), optax.scale_by_adam().init(params), {}):
        with pytest.raises(TypeError, match="state must be what init of this optimizer returned"):
            scaler().update(params, state)


# Some leaves in full.


def test_partition_chooses_leaves():
    params = {"w": normal(12, 10, 10), "b": normal(13, 10)}
    optimizer = optax.partition(
        {"full": amsgrad_jax.amsgrad(1e-2), "packed": amsgrad_jax.amsgrad(1e-2, storage="packed")},
        {"w": "packed", "b": "full"},
    )
    gradients = jax.tree.map(lambda p: jnp.stack([p, -2 * p, p]), params)
    got = steps(optimizer, params, gradients)[0]
    for leaf, storage in (("w", "packed"), ("b", "full")):
        # The leaf keeps its path in a partition, hence its bits.
        want = steps(amsgrad_jax.amsgrad(1e-2, storage=storage), params, gradients)[0]
        chex.assert_trees_all_equal(got[leaf], want[leaf])
    # One run in two storages is one again, and goes back into the two.
    state = trained(optimizer, params)[1]
    taken = interop.get_moments(state, params)
    assert taken.count == 30
    chex.assert_trees_all_equal(interop.set_moments(optimizer.init(params), taken), state)


def test_flattened():
    params = {"w": normal(12, 10, 10), "b": normal(13, 10)}
    optimizer = optax.flatten(scaler())
    state = optimizer.init(params)
    assert state.packed.shape == (110,)
    updates, _ = optimizer.update(params, state)
    # The root is off by 1/32 at most, mu by 1/16.
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.sign, params), rtol=0.095)


# From one storage to another.


def trained(optimizer, params, count=30, state=None, seed=14):
    gradients = jax.tree.map(lambda p: normal(seed, count, *p.shape) + 0.5, params)
    params, _, states = steps(optimizer, params, gradients, state)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[-1]), (params, states))


PARAMS = {"w": normal(15, 16, 4), "none": None, "empty": jnp.zeros((0, 2)), "s": jnp.ones(())}


def test_to_words_and_back_is_within_their_bounds():
    _, state = trained(scaler("full"), PARAMS)
    packed = convert_storage(state, "packed")
    chex.assert_trees_all_equal_shapes_and_dtypes(packed, scaler().init(PARAMS))
    back = in_full(packed)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)
    assert back.count == state.count == 30
    root = np.sqrt(state.nu_max["w"])
    np.testing.assert_allclose(np.sqrt(back.nu_max["w"]), root, rtol=1 / 32)
    # The bounds that the docstring gives, for the rounded root.
    assert np.all(np.abs(np.sqrt(back.nu["w"]) - np.sqrt(state.nu["w"])) <= 1.04 * 2**-11 * root)
    allowed = np.abs(state.mu["w"]) / 32 + 1.04 * 2**-13 * root
    assert np.all(np.abs(back.mu["w"] - state.mu["w"]) <= allowed)


def test_what_is_unpacked_is_packed_as_the_same_words():
    _, state = trained(scaler(), PARAMS)
    full = convert_storage(state, "full")
    chex.assert_trees_all_equal(convert_storage(full, "packed"), state)
    for storage, same in (("packed", state), ("full", full)):
        assert convert_storage(same, storage) is same


def test_words_of_a_run_survive_the_way_through_full():
    # Also where nu was rounded to above its rounded maximum.
    gradients = normal(18, 3, 300, 300)
    optimizer = scaler()
    state = optimizer.init(gradients[0])
    for gradient in gradients:
        _, state = jax.jit(optimizer.update)(gradient, state)
    full = in_full(state)
    assert jnp.any(full.nu > full.nu_max)
    chex.assert_trees_all_equal(convert_storage(full, "packed"), state)


def test_a_maximum_below_nu_becomes_nu():
    _, state = trained(scaler("full"), PARAMS)
    reset = remedies.reset_max(state)
    back = in_full(convert_storage(reset, "packed"))
    np.testing.assert_allclose(back.nu_max["w"], state.nu["w"], rtol=0.07)
    np.testing.assert_allclose(back.nu["w"], state.nu["w"], rtol=0.002)


def test_nu_a_little_above_its_maximum_has_room_in_the_word():
    nu_max = jnp.linspace(1.0, 4.2, 1000) ** 2
    state = amsgrad_jax.ScaleByAmsgradState(jnp.int32(9), nu_max, 1.05 * nu_max, nu_max)
    back = in_full(convert_storage(state, "packed"))
    np.testing.assert_allclose(np.sqrt(back.nu_max), np.sqrt(nu_max), rtol=1 / 32)
    np.testing.assert_allclose(back.nu, state.nu, rtol=0.03)  # 1 % of the root, where it is cut


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
    packed = jax.jit(lambda state: convert_storage(state, "packed"))(state)
    end, after = trained(wrap("packed"), params, state=packed, seed=16)
    way = jnp.linalg.norm(full_end["w"] - params["w"])
    assert jnp.linalg.norm(end["w"] - full_end["w"]) < 0.05 * way
    chex.assert_trees_all_equal_shapes_and_dtypes(after, packed)


def test_states_of_an_ensemble_are_converted():
    optimizer = amsgrad_jax.amsgrad(1e-2)
    params = {"w": normal(17, 5, 16)}
    state = jax.vmap(optimizer.init)(params)
    _, state = jax.vmap(optimizer.update)(params, state)
    packed = convert_storage(state, "packed")
    assert packed[0].count.shape == (5,)
    one_by_one = jax.vmap(lambda state: convert_storage(state, "packed"))(state)
    chex.assert_trees_all_equal(packed, one_by_one)


def test_conversion_keeps_shardings():
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = scaler("full").init({"w": jax.device_put(jnp.ones((8, 3)), split)})
    packed = convert_storage(state, "packed")
    full = convert_storage(packed, "full")
    for leaf in (packed.packed["w"], full.mu["w"], full.nu["w"], full.nu_max["w"]):
        assert leaf.sharding.is_equivalent_to(split, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(state=(optax.EmptyState(),), storage="full"),
            "found no amsgrad_jax.ScaleByAmsgradState or Packed",
        ),
        (dict(storage="half"), "unknown storage 'half': it must be 'full' or 'packed'"),
        (dict(storage=None), "storage must be 'full' or 'packed', got None"),
        (dict(storage=["full"]), "storage must be .* got a list"),
    ],
)
def test_bad_conversions(arguments, message):
    state = amsgrad_jax.amsgrad(1e-2).init(PARAMS)
    with pytest.raises((ValueError, TypeError), match=message):
        convert_storage(**({"state": state} | arguments))


# On disk.


def template(optimizer, params):
    """What a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        optimizer.init(params),
    )


def with_orbax(state, optimizer, params, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(tmp_path / "state", template(optimizer, params))


def with_msgpack(state, optimizer, params, tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_bytes(optimizer.init(params), serialization.to_bytes(state))


def with_equinox(state, optimizer, params, tmp_path):
    equinox = pytest.importorskip("equinox")
    equinox.tree_serialise_leaves(tmp_path / "state", state)
    return equinox.tree_deserialise_leaves(tmp_path / "state", optimizer.init(params))


def with_nnx(state, optimizer, params, tmp_path):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(params["w"])

    made = nnx.Optimizer(Model(), optimizer, wrt=nnx.Param)
    old = nnx.Optimizer(
        Model(), amsgrad_jax.amsgradw(1e-2, storage=storage_of(state)), wrt=nnx.Param
    )
    old.opt_state = nnx.merge(*nnx.split(old.opt_state))
    nnx.update(made, nnx.state(old))
    return made


def storage_of(state):
    return "packed" if hasattr(state[0], "packed") else "full"


every_way = pytest.mark.parametrize(
    "way", [with_orbax, with_msgpack, with_equinox], ids=lambda way: way.__name__
)


@every_way
@pytest.mark.parametrize("storage", ["full", "packed"])
def test_a_checkpoint_resumes_to_the_same_bits(storage, way, tmp_path):
    params = {"w": normal(21, 8, 4)}
    optimizer = amsgrad_jax.amsgradw(1e-2, storage=storage)
    params_then, state = trained(optimizer, params)
    restored = way(state, optimizer, params, tmp_path)
    chex.assert_trees_all_equal(restored, state)
    end = lambda state: trained(optimizer, params_then, state=state, seed=22)
    chex.assert_trees_all_equal(end(restored), end(state))


@pytest.mark.parametrize(
    "way", [with_orbax, with_msgpack, with_equinox, with_nnx], ids=lambda way: way.__name__
)
@pytest.mark.parametrize(("made", "used"), [("full", "packed"), ("packed", "full")])
def test_a_checkpoint_of_the_other_storage_raises(made, used, way, tmp_path):
    params = {"w": normal(21, 8, 4)}
    state = trained(amsgrad_jax.amsgradw(1e-2, storage=made), params)[1]
    with pytest.raises((ValueError, RuntimeError)):
        way(state, amsgrad_jax.amsgradw(1e-2, storage=used), params, tmp_path)
