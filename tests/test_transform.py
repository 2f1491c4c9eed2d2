"""The transformation over a tree: what it computes with, and how often it is traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import _rule
from tests.variants import CONVENTIONS, enable_x64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_half_precision_is_computed_in_float32(convention, nesterov, dtype):
    """As if the gradients had been float32, but for the rounding of the update."""
    optimizer = amsgrad_jax.scale_by_amsgrad(convention=convention, nesterov=nesterov)
    narrow = wide = optimizer.init(jnp.zeros(3, dtype))
    for scale in np.geomspace(1e-3, 1, 10):
        gradient = jnp.asarray([scale, -scale, 3 * scale], dtype)
        low, narrow = optimizer.update(gradient, narrow)
        high, wide = optimizer.update(gradient.astype(jnp.float32), wide)
        chex.assert_trees_all_equal(low, high.astype(dtype))
    chex.assert_trees_all_equal(narrow, wide)


def test_state_decides_the_precision_not_the_gradient():
    with enable_x64():
        optimizer = amsgrad_jax.scale_by_amsgrad()
        state = optimizer.init(jnp.ones(2, jnp.float64))
        updates, state = optimizer.update(jnp.ones(2, jnp.float32), state)
        assert updates.dtype == jnp.float32
        assert state.mu.dtype == state.nu.dtype == state.nu_max.dtype == jnp.float64
        mixed = {"single": jnp.ones(2, jnp.float32), "double": jnp.ones(2, jnp.float64)}
        _, state = optimizer.update(mixed, optimizer.init(mixed))
        assert state.nu["single"].dtype == jnp.float32
        assert state.nu["double"].dtype == jnp.float64
        np.testing.assert_allclose(state.nu["double"], 1 - 0.999, rtol=1e-15)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_equal_leaves_are_traced_once(monkeypatch, storage):
    calls = []
    averages = _rule.averages

    def counting(gradient, *args):
        calls.append(gradient.shape)
        return averages(gradient, *args)

    monkeypatch.setattr(_rule, "averages", counting)
    optimizer = amsgrad_jax.scale_by_amsgrad(storage=storage)
    params = [jnp.ones((3, 7))] * 20 + [jnp.ones((3, 8))] * 20
    jax.eval_shape(optimizer.update, params, optimizer.init(params))
    assert calls == [(3, 7), (3, 8)]


def test_state_has_the_fields_of_optax():
    ours, theirs = (module.scale_by_amsgrad().init(jnp.ones(2)) for module in (amsgrad_jax, optax))
    assert ours._fields == theirs._fields
    assert ours.count.dtype == jnp.int32


@pytest.mark.parametrize("nesterov", [False, True])
def test_count_saturates(nesterov):
    optimizer = amsgrad_jax.scale_by_amsgrad(nesterov=nesterov)
    long_ago = optimizer.init(jnp.ones(2))._replace(count=jnp.int32(2**31 - 2))
    before, last = optimizer.update(jnp.ones(2), long_ago)
    assert last.count == 2**31 - 1
    after, still = optimizer.update(
        jnp.ones(2), last._replace(**long_ago._asdict() | {"count": last.count})
    )
    assert still.count == 2**31 - 1
    chex.assert_trees_all_equal(before, after)


def test_three_moments_take_twelve_bytes_a_parameter():
    state = amsgrad_jax.scale_by_amsgrad().init(jnp.ones(1000, jnp.bfloat16))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state[1:])) == 12 * 1000


@pytest.mark.parametrize("name", CONVENTIONS)
def test_names_are_the_constants(name):
    constant = getattr(amsgrad_jax, name.upper())
    gradients = [jnp.float32(g) for g in (1.0, 30.0, -0.1)]

    def run(convention):
        optimizer = amsgrad_jax.scale_by_amsgrad(eps=1e-2, convention=convention)
        state = optimizer.init(jnp.float32(0))
        for gradient in gradients:
            update, state = optimizer.update(gradient, state)
        return update

    assert run(name) == run(constant)
    others = [run(other) for other in CONVENTIONS if other != name]
    assert all(abs(run(name) / other - 1) > 1e-4 for other in others)


def test_pmap_keeps_replicas_equal():
    optimizer = amsgrad_jax.amsgrad(0.1)
    params = jnp.arange(4.0)
    xs = jnp.arange(8.0).reshape(2, 4)  # one row for each of two devices

    def one(params, state, x):
        gradient = jax.lax.pmean(jax.grad(lambda p: jnp.sum((p - x) ** 2))(params), "devices")
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    replicate = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)
    carry = replicate((params, optimizer.init(params)))
    step = jax.pmap(one, axis_name="devices", devices=jax.devices("cpu")[:2])
    for _ in range(3):
        carry = step(*carry, xs)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf, i=i: leaf[i], carry) for i in (0, 1)))
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(2 * (params - xs.mean(0)), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(carry[0][0], params, rtol=1e-6)
