"""Forgetting the maximum, and gradients that are not finite or whose squares are not."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import remedies
from tests.variants import CONVENTIONS

STORAGES = ("full", "packed")
PARAMS = {"w": jnp.float32([1, -2, 3]), "b": jnp.float32(0.5), "none": None}


def random_gradients(number, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32)
    return [jax.tree.map(draw, PARAMS) for _ in range(number)]


compiled = functools.cache(jax.jit)


@functools.cache
def amsgrad(storage):
    return amsgrad_jax.amsgrad(0.1, storage=storage)


def follow(optimizer, gradients, state=None):
    """All updates, and the last state."""
    state = optimizer.init(PARAMS) if state is None else state
    update, updates = compiled(optimizer.update), []
    for gradient in gradients:
        step, state = update(gradient, state, PARAMS)
        updates.append(step)
    return updates, state


def assert_same(got, want, storage="full"):
    """Equal up to the last bits, which XLA rounds differently in another program, and what a
    word makes of them if they fall on its edge."""
    rtol = 2e-6 if storage == "full" else 0.07
    numbers = [
        amsgrad_jax.convert_storage(tree, "full") if isinstance(tree, tuple) else tree
        for tree in (got, want)
    ]
    chex.assert_trees_all_close(*numbers, rtol=rtol, atol=1e-6)


# Forgetting.


@pytest.mark.parametrize("convention", ["pytorch", "optax"])
def test_the_step_after_a_reset_is_adams(convention):
    """From the same moments, compared with Optax's own Adam."""
    optimizer = amsgrad_jax.scale_by_amsgrad(b2=0.9, convention=convention)
    _, state = follow(optimizer, [jax.tree.map(lambda g: 100 * g, PARAMS), *random_gradients(60)])
    gradient = random_gradients(1, seed=1)[0]
    adam = optax.ScaleByAdamState(state.count, state.mu, state.nu)
    (want,), _ = follow(optax.scale_by_adam(b2=0.9), [gradient], adam)
    (before,), _ = follow(optimizer, [gradient], state)
    (after,), _ = follow(optimizer, [gradient], jax.jit(remedies.reset_max)(state))
    chex.assert_trees_all_close(after, want, rtol=1e-5)
    assert jnp.all(jnp.abs(before["w"]) < 0.2 * jnp.abs(want["w"]))


@pytest.mark.parametrize("storage", STORAGES)
def test_reset_keeps_everything_else(storage):
    optimizer = optax.chain(optax.clip(1.0), amsgrad_jax.amsgrad(0.1, storage=storage))
    _, state = follow(optimizer, random_gradients(3))
    after = remedies.reset_max(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    ours, was = (amsgrad_jax.convert_storage(s, "full")[1][0] for s in (after, state))
    assert ours.count == was.count == 3
    if storage == "full":
        chex.assert_trees_all_equal(ours[:3], was[:3])
        assert all(not leaf.any() for leaf in jax.tree.leaves(ours.nu_max))
    else:  # rounded anew, beside the new maximum
        chex.assert_trees_all_close(ours.mu, was.mu, rtol=1 / 32)
        chex.assert_trees_all_close(ours.nu, was.nu, rtol=2e-3)
        chex.assert_trees_all_close(ours.nu_max, was.nu, rtol=0.065)
    assert all(leaf.any() for leaf in jax.tree.leaves(was.nu_max))


@pytest.mark.parametrize("convention", ["pytorch", "optax"])
def test_a_warm_up_without_maximum_is_adam(convention):
    optimizer = remedies.reset_max_when(
        amsgrad_jax.scale_by_amsgrad(b2=0.9, convention=convention), lambda count: count < 10
    )
    gradients = [jax.tree.map(lambda g, t=t: g / 2**t, PARAMS) for t in range(15)]
    ours, _ = follow(optimizer, gradients)
    adams, _ = follow(optax.scale_by_adam(b2=0.9), gradients)
    chex.assert_trees_all_close(ours[:10], adams[:10], rtol=1e-5)
    for held, free in zip(ours[11:], adams[11:], strict=True):
        assert jnp.all(jnp.abs(held["w"]) < 0.99 * jnp.abs(free["w"]))


@pytest.mark.parametrize("storage", STORAGES)
def test_resets_on_a_schedule_are_resets_by_hand(storage):
    inner = amsgrad_jax.amsgrad(0.1, b2=0.9, storage=storage)
    gradients = random_gradients(10)
    scheduled, state = follow(
        remedies.reset_max_when(inner, lambda count: count % 4 == 0), gradients
    )
    by_hand, plain = [], inner.init(PARAMS)
    for start in range(0, 10, 4):
        part, plain = follow(inner, gradients[start : start + 4], remedies.reset_max(plain))
        by_hand += part
    assert_same(scheduled, by_hand, storage)
    assert_same(state.inner_state, plain, storage)
    assert state.count == 10


def test_a_schedule_of_resets_costs_no_memory():
    optimizer = remedies.reset_max_when(amsgrad_jax.amsgrad(0.1), lambda count: count == 5)
    params = jnp.ones(100_000)
    state = jax.jit(optimizer.init)(params)
    step = jax.jit(lambda g, state: optimizer.update(g, state), donate_argnums=(0, 1))
    memory = step.lower(params, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1024


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (100, "when must be a function of the count, got 100"),
        (lambda count: count, r"when must return a scalar bool, got int32\[\]"),
        (lambda count: jnp.ones(2, bool), r"when must return a scalar bool, got bool\[2\]"),
        (lambda count: None, "when must return a scalar bool, got None"),
        (lambda count: "now", "when must return a scalar bool, got 'now'"),
    ],
)
def test_bad_schedules(when, message):
    with pytest.raises(TypeError, match=message):
        follow(remedies.reset_max_when(amsgrad_jax.amsgrad(0.1), when), random_gradients(1))


def test_what_is_no_transformation_or_not_its_state():
    with pytest.raises(TypeError, match="transformation must be an optax.Gradient.*, got 3 of"):
        remedies.reset_max_when(3, lambda count: count < 3)
    inner = amsgrad_jax.amsgrad(0.1)
    with pytest.raises(TypeError, match="state must be the ResetMaxWhenState .*, got tuple"):
        remedies.reset_max_when(inner, lambda count: count < 3).update(PARAMS, inner.init(PARAMS))


def test_a_schedule_may_return_a_python_bool():
    always = remedies.reset_max_when(amsgrad("full"), lambda count: True)
    never = remedies.reset_max_when(amsgrad("full"), lambda count: False)
    spike = jax.tree.map(lambda g: 1e3 * g, PARAMS)
    (*_, held), _ = follow(never, [spike, PARAMS])
    (*_, free), _ = follow(always, [spike, PARAMS])
    (*_, adams), _ = follow(optax.adam(0.1), [spike, PARAMS])
    chex.assert_trees_all_close(free, adams, rtol=1e-5)
    assert jnp.all(jnp.abs(free["w"]) >= jnp.abs(held["w"]))


def test_nothing_to_reset():
    with pytest.raises(ValueError, match=r"found no .*ScaleByAmsgradState"):
        remedies.reset_max(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"found no .*ScaleByAmsgradState"):
        remedies.reset_max_when(optax.adam(0.1), lambda count: count < 3).init(PARAMS)


# Gradients that are not finite: the recipes of docs/diagnostics.md.


@functools.cache
def clip_and_skip(optimizer):
    """Skips NaN and inf. The norm of 1e30 is inf, and so what is left of it is 0."""
    clipped = optax.chain(optax.clip_by_global_norm(10.0), optimizer)
    return optax.apply_if_finite(clipped, max_consecutive_errors=10)


@functools.cache
def skip_large(optimizer):
    """Skips every gradient whose squared norm is not below 100**2, NaN included."""
    skip = functools.partial(optax.skip_large_updates, max_squared_norm=100.0**2)
    return optax.MultiSteps(optimizer, 1, should_skip_update_fn=skip).gradient_transformation()


skip_not_finite = functools.cache(lambda optimizer: optax.apply_if_finite(optimizer, 10))


def with_fault(gradients, step, value):
    broken = list(gradients)
    broken[step] = broken[step] | {"w": broken[step]["w"].at[1].set(value)}
    return broken


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("storage", STORAGES)
def test_skipping_leaves_a_fault_out(storage, value):
    """The run without that step, and the state says how many were left out."""
    gradients = random_gradients(12)
    fault = 7
    optimizer = amsgrad(storage)
    _, want = follow(optimizer, gradients[:fault] + gradients[fault + 1 :])
    updates, state = follow(skip_large(optimizer), with_fault(gradients, fault, value))
    assert_same(state.inner_opt_state, want, storage)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates[fault]))
    assert len(gradients) - state.gradient_step == 1
    if not np.isfinite(value):
        _, state = follow(skip_not_finite(optimizer), with_fault(gradients, fault, value))
        assert_same(state.inner_state, want, storage)
        assert state.total_notfinite == 1


@pytest.mark.parametrize("storage", STORAGES)
def test_clipping_by_the_norm_takes_a_square_that_overflows_for_nothing(storage):
    gradients = random_gradients(12)
    optimizer = amsgrad(storage)
    nothing = gradients.copy()
    nothing[7] = jax.tree.map(jnp.zeros_like, nothing[7])
    want, expected = follow(optimizer, nothing)
    got, state = follow(clip_and_skip(optimizer), with_fault(gradients, 7, 1e30))
    assert_same(got, want, storage)
    assert_same(state.inner_state[1], expected, storage)
    assert state.total_notfinite == 0


@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_without_a_recipe_the_coordinate_is_lost(value):
    """Why the recipes are there; clipping alone makes it worse for NaN."""
    gradients = with_fault(random_gradients(12), 3, value)
    updates, _ = follow(amsgrad_jax.amsgrad(0.1), gradients)
    assert np.isnan(updates[-1]["w"][1]) or updates[-1]["w"][1] == 0
    assert updates[-1]["w"][0] != 0
    clipped = optax.chain(optax.clip_by_global_norm(1.0), amsgrad_jax.amsgrad(0.1))
    updates, _ = follow(clipped, gradients)
    assert np.isnan(updates[-1]["w"]).all() == np.isnan(value)


FAULTS = np.float32([np.nan, np.inf, -np.inf, 1e30, 1e-30, 0.0])
STEPS, SEEDS = 10_000, 8


def noisy_runs(optimizer):
    """State, mean loss of the last 2,000 steps, and NaN and inf met; each with faults, without."""
    rng = np.random.default_rng(0)
    target = np.linspace(-1, 1, 5, dtype=np.float32)
    noise = rng.normal(size=(STEPS, SEEDS, 5)).astype(np.float32)
    faults = rng.random((STEPS, SEEDS)) < 1 / 50
    values = rng.choice(FAULTS, (STEPS, SEEDS))

    def step(carry, given):
        params, state = carry
        noise, fault, value = given
        gradient = params["w"] - target + noise
        # All of it is 0 or one element is at fault.
        broken = jnp.where(value == 0, 0 * gradient, gradient.at[1].set(value))
        gradient = jnp.where(fault, broken, gradient)
        updates, state = optimizer.update({"w": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.sum((params["w"] - target) ** 2)

    # Faulty and clean runs beside each other.
    given = noise[:, None], np.stack([faults, np.zeros_like(faults)], 1), values[:, None]
    given = [np.broadcast_to(x, (STEPS, 2, SEEDS, *x.shape[3:])) for x in given]
    params = {"w": jnp.zeros((2, SEEDS, 5))}
    each = lambda function: jax.vmap(jax.vmap(function))
    carry, losses = jax.jit(functools.partial(jax.lax.scan, each(step)))(
        (params, each(optimizer.init)(params)), tuple(given)
    )
    return carry, losses[-2000:].mean(0), (given[1] & ~np.isfinite(given[2])).sum(0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_ten_thousand_steps_with_faults(convention, storage):
    optimizer = clip_and_skip(amsgrad_jax.amsgrad(1e-2, convention=convention, storage=storage))
    (params, state), losses, skipped = noisy_runs(optimizer)
    full = amsgrad_jax.convert_storage(state, "full")
    chex.assert_tree_all_finite((params, full))
    faulty, clean = np.asarray(losses)
    np.testing.assert_array_equal(state.total_notfinite, skipped)
    assert np.all(skipped[0] > 50)
    noise = np.std(clean, ddof=1)
    assert abs(faulty.mean() - clean.mean()) < noise
    untrained = np.sum(np.linspace(-1, 1, 5) ** 2)
    assert clean.max() < 0.05 * untrained
