"""bfloat16 parameters: sums that are rounded stochastically, by whoever applies the updates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def test_rounds_to_a_neighbour_and_is_right_on_average():
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


def test_other_leaves_are_left_to_optax():
    params = {"f": normal(19, 3), "n": None, "h": jnp.ones(2, jnp.float16), "b": jnp.bfloat16(1)}
    updates = {"f": normal(20, 3), "n": None, "h": jnp.ones(2), "b": jnp.float32(2)}
    got = amsgrad_jax.stochastic_apply_updates(params, updates, 0)
    chex.assert_trees_all_equal(got, optax.apply_updates(params, updates))
    chex.assert_trees_all_equal_dtypes(got, params)
    link = amsgrad_jax.stochastic_rounding()
    passed, _ = link.update(updates, link.init(params), params)
    chex.assert_trees_all_equal(passed, updates)


def test_refuses_what_it_cannot_do():
    one = jnp.ones(2, jnp.bfloat16)
    for count in (1.5, jnp.ones(2, jnp.int32), None):
        with pytest.raises((TypeError, ValueError), match="count must be an integer scalar"):
            amsgrad_jax.stochastic_apply_updates(one, one, count)
    total = lambda u: jnp.sum(amsgrad_jax.stochastic_apply_updates(one, u, 0).astype(jnp.float32))
    with pytest.raises(TypeError, match="cannot be differentiated through"):
        jax.grad(total)(jnp.ones(2))
    link = amsgrad_jax.stochastic_rounding()
    with pytest.raises(ValueError, match="stochastic_rounding needs the parameters"):
        link.update(one, link.init(one))


# The link of a chain.


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e6, 1e30])
def test_optax_lands_on_the_rounded_sum(scale):
    params = {"w": normal(21, 100, 10).astype(jnp.bfloat16), "f": normal(22, 7)}
    link = amsgrad_jax.stochastic_rounding()
    state = link.init(params)
    for count in range(5):
        updates = {"w": normal(count, 100, 10, scale=scale), "f": normal(count, 7)}
        want = amsgrad_jax.stochastic_apply_updates(params, updates, count)
        updates, state = jax.jit(link.update)(updates, state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(params, want, strict=True)
    assert state.count == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad):
    params = jnp.array([1, 1, jnp.inf], jnp.bfloat16)
    link = amsgrad_jax.stochastic_rounding()
    updates, _ = link.update(jnp.float32([bad, 0.5, 1]), link.init(params), params)
    got = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(got.astype(np.float32), np.float32([1 + bad, 1.5, np.inf]))


def optimizer():
    # Behind a schedule, which has a count of its own.
    schedule = optax.linear_schedule(1e-3, 1e-4, 100)
    return optax.chain(
        amsgrad_jax.amsgrad(schedule, storage="packed"), amsgrad_jax.stochastic_rounding()
    )


def expected(params, gradients, steps):
    """The same run, applied by `stochastic_apply_updates`."""
    inner = amsgrad_jax.amsgrad(optax.linear_schedule(1e-3, 1e-4, 100), storage="packed")
    state = inner.init(params)

    @jax.jit  # as the libraries do: XLA may keep more than bfloat16 between two operations
    def step(params, state, count):
        updates, state = inner.update(gradients, state, params)
        return amsgrad_jax.stochastic_apply_updates(params, updates, count), state

    for count in range(steps):
        params, state = step(params, state, count)
    return params


def test_with_nnx_optimizer():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(16, 32, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    training = nnx.Optimizer(model, optimizer(), wrt=nnx.Param)
    loss = lambda model: jnp.sum(model(jnp.ones((4, 16))).astype(jnp.float32))
    arrays = lambda params: {name: params[name][...] for name in ("bias", "kernel")}
    # The gradients are constant, as the loss is linear.
    want = expected(arrays(nnx.state(model, nnx.Param)), arrays(nnx.grad(loss)(model)), 20)

    @nnx.jit
    def step(model, training):
        training.update(model, nnx.grad(loss)(model))

    start = jnp.asarray(model.kernel[...])
    for _ in range(20):
        step(model, training)
    assert model.kernel[...].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(arrays(nnx.state(model, nnx.Param)), want)
    # 20 steps of about 1e-3, though most of them are below half a unit.
    moved = jnp.mean(start.astype(jnp.float32) - model.kernel[...].astype(jnp.float32))
    assert moved == pytest.approx(0.018, rel=0.1)


def test_with_flax_train_state():
    train_state = pytest.importorskip("flax.training.train_state")
    params = {"w": normal(23, 50, 20).astype(jnp.bfloat16)}
    gradients = jax.tree.map(jnp.ones_like, params)
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optimizer())
    step = jax.jit(lambda state: state.apply_gradients(grads=gradients))
    for _ in range(10):
        state = step(state)
    chex.assert_trees_all_equal(state.params, expected(params, gradients, 10), strict=True)
