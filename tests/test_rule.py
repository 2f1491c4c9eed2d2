"""The rule for one array: its accuracy, its invariants and its corner cases."""

import functools
import itertools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import amsgrad_jax
from amsgrad_jax import _rule
from benchmarks import accuracy
from tests import reference
from tests.variants import CONVENTIONS, enable_x64

RAW = ("paper", "pytorch", "keras")  # the maximum runs over uncorrected moments


def gradient_sequences(largest=2.0**60, steps=8, size=4):
    """Sequences of float32 gradients whose squares do not overflow."""
    values = st.floats(-largest, largest, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, st.tuples(st.integers(1, steps), st.just(size)), elements=values)


@functools.cache
def jitted(**kwargs):
    optimizer = amsgrad_jax.scale_by_amsgrad(**kwargs)
    return optimizer.init, jax.jit(optimizer.update)


def run(gradients, **kwargs):
    """Returns all updates and all states along a sequence of gradients."""
    init, update = jitted(**kwargs)
    state = init(jnp.asarray(gradients[0]))
    updates, states = [], [state]
    for gradient in gradients:
        direction, state = update(jnp.asarray(gradient), state)
        updates.append(np.asarray(direction))
        states.append(state)
    return updates, states


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_equals_the_written_out_conventions(convention, nesterov, dtype):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(60, 5)) * 10.0 ** rng.uniform(-6, 6, size=(60, 5))
    if dtype == np.complex128:
        gradients = gradients * np.exp(1j * rng.uniform(0, 6, size=(60, 5)))
    gradients[:, 0] = 0  # a coordinate that never moves
    gradients[:30, 1] = 0  # one that wakes up
    with enable_x64():
        kwargs = dict(b1=0.9, b2=0.99, eps=1e-3, eps_root=1e-7, nesterov=nesterov)
        updates, states = run(gradients, convention=convention, **kwargs)
    for update, state, (u, moments) in zip(
        updates, states[1:], reference.run(convention, gradients, **kwargs), strict=True
    ):
        np.testing.assert_allclose(update, u, rtol=1e-12, atol=0)
        np.testing.assert_allclose(state.mu, moments.m, rtol=1e-12, atol=0)
        np.testing.assert_allclose(state.nu, moments.v, rtol=1e-12, atol=0)
        np.testing.assert_allclose(state.nu_max, moments.x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_one_float32_step_loses_four_roundings_at_most(convention, b2):
    """From one float32 state, at many t: the update is within 5e-7 of float64's."""
    optimizer = amsgrad_jax.scale_by_amsgrad(b1=0.9, b2=b2, convention=convention)
    step = accuracy.through_optax(optimizer, amsgrad_jax.ScaleByAmsgradState)
    numbers = np.unique([*range(1, 201), *np.geomspace(200, 100_000, 60).astype(int)])
    assert accuracy.largest_error(step, convention, b2, map(int, numbers)) < 5e-7


@hypothesis.given(gradient_sequences())
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_maximum_never_decreases(convention, gradients):
    _, states = run(gradients, convention=convention)
    for before, after in itertools.pairwise(states):
        assert np.all(np.asarray(after.nu_max) >= np.asarray(before.nu_max))


@hypothesis.given(gradient_sequences())
@pytest.mark.parametrize("convention", RAW)
def test_maximum_is_above_the_raw_average(convention, gradients):
    _, states = run(gradients, convention=convention)
    for state in states:
        assert np.all(np.asarray(state.nu_max) >= np.asarray(state.nu))


growing_gradients = st.builds(
    lambda growth, sign: (
        np.cumprod(growth, axis=0) * np.where(sign, 1e-3, -1e-3).astype(np.float32)
    ),
    hnp.arrays(np.float32, (8, 4), elements=st.floats(1.25, 4, width=32)),
    hnp.arrays(np.bool_, (8, 4)),
)


@functools.cache
def jitted_optax_adam(nesterov):
    optimizer = optax.scale_by_adam(nesterov=nesterov)
    return optimizer.init, jax.jit(optimizer.update)


def run_optax_adam(gradients, nesterov=False):
    init, update = jitted_optax_adam(nesterov)
    state = init(jnp.asarray(gradients[0]))
    for gradient in gradients:
        direction, state = update(jnp.asarray(gradient), state)
        yield direction, state


@hypothesis.given(growing_gradients)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("convention", ["pytorch", "optax"])
def test_is_optax_adam_where_the_average_never_falls(convention, nesterov, gradients):
    updates, _ = run(gradients, convention=convention, nesterov=nesterov)
    for update, (adam, _) in zip(updates, run_optax_adam(gradients, nesterov), strict=True):
        # optax forms 1 - 0.999**t in float32, which is good to four digits.
        np.testing.assert_allclose(update, adam, rtol=2e-4, atol=1e-6)


@hypothesis.given(growing_gradients)
@pytest.mark.parametrize("convention", ["paper", "keras"])
def test_is_adam_without_maximum_where_the_average_never_falls(convention, gradients):
    updates, states = run(gradients, convention=convention, eps=0.0)
    for t, (update, state, (_, adam)) in enumerate(
        zip(updates, states[1:], run_optax_adam(gradients), strict=True), start=1
    ):
        np.testing.assert_array_equal(state.nu_max, state.nu)
        correction = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) if convention == "keras" else 1
        want = correction * np.asarray(adam.mu, np.float64) / np.sqrt(adam.nu)
        np.testing.assert_allclose(update, want, rtol=1e-6, atol=1e-6)


@hypothesis.given(gradient_sequences(2.0**10), st.integers(-20, 20))
def test_paper_without_eps_does_not_see_the_scale_of_gradients(gradients, exponent):
    gradients = np.where(np.abs(gradients) < 1e-6, 0, gradients).astype(np.float32)
    updates, _ = run(gradients, convention="paper", eps=0.0)
    scaled, _ = run(gradients * np.float32(2.0**exponent), convention="paper", eps=0.0)
    np.testing.assert_array_equal(updates, scaled)


@hypothesis.given(gradient_sequences(steps=2), st.permutations(range(4)))
def test_order_of_leaves_does_not_matter(gradients, order):
    init, update = jitted()
    straight = shuffled = None
    for gradient in gradients:
        leaves = [jnp.asarray(g).reshape(1) for g in gradient]
        if straight is None:
            straight, shuffled = init(leaves), init(leaves)
        ours, straight = update(leaves, straight)
        theirs, shuffled = update([leaves[i] for i in order], shuffled)
        chex.assert_trees_all_equal([ours[i] for i in order], theirs)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_history_update_and_derivative_are_zero(convention, eps):
    init, update = jitted(convention=convention, eps=eps)

    def direction(gradient):
        return update(gradient, init(gradient))[0]

    for derivative in direction, jax.grad(direction), jax.grad(jax.grad(direction)):
        assert jax.jit(derivative)(jnp.zeros(())) == 0


def test_gradients_with_underflowing_squares_count_as_zero():
    """Never inf: 1e-30 squared is 0 in float32, and without eps nothing is left below."""
    updates, _ = run(np.full((3, 2), 1e-30, np.float32), eps=0.0)
    np.testing.assert_array_equal(updates, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradients_are_seen(bad):
    gradients = np.array([[1, 1], [bad, 1]], np.float32)
    updates, _ = run(gradients)
    assert np.isnan(updates[1][0])
    assert np.isfinite(updates[1][1])


def test_overflowing_square_stops_a_coordinate_without_nan():
    gradients = np.array([[1, 1], [1e30, 1], [1, 1], [1, 1]], np.float32)
    updates, _ = run(gradients)
    np.testing.assert_array_equal(np.asarray(updates)[1:, 0], 0)
    assert np.all(np.asarray(updates)[1:, 1] > 0)


def test_first_decay_rate_may_be_zero():
    gradients = np.array([[3.0], [-2.0]], np.float32)
    for b1 in (0, 0.0, np.float32(0), jnp.zeros(())):
        init, update = amsgrad_jax.scale_by_amsgrad(b1=b1, b2=0.0, eps=0.0)
        state = init(jnp.zeros(1))
        for gradient, want in zip(gradients, (1.0, -2 / 3), strict=True):
            direction, state = update(jnp.asarray(gradient), state)
            np.testing.assert_allclose(direction, want, rtol=1e-6)


# At decay rates of 0, where the logarithm of the correction is infinite.


def by_decay_rates(make, decay_rates, gradients, dtype):
    """Derivatives of a sum over the updates of several steps with respect to b1 and b2.

    For each pair of decay rates.
    """

    def total(b1, b2):
        optimizer = make(b1, b2)
        state = optimizer.init(jnp.zeros(gradients.shape[1], dtype))
        sums = []
        for t, gradient in enumerate(gradients):
            update, state = optimizer.update(jnp.asarray(gradient, dtype), state)
            sums.append((t + 1) * jnp.sum(jnp.sin(jnp.arange(1.0, 5, dtype=dtype)) * update))
        return jnp.stack(sums)

    columns = (jnp.asarray(column, dtype) for column in zip(*decay_rates, strict=True))
    return jax.jit(jax.vmap(jax.jacrev(total, (0, 1))))(*columns)


DECAYED = np.random.default_rng(3).normal(size=(4, 4)) * [[1.0], [3.0], [0.5], [2.0]]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_derivatives_by_decay_rates_of_zero(convention, nesterov):
    """The numerical derivatives of the float64 formulas, from one side."""
    kwargs = dict(eps=1e-2, convention=convention, nesterov=nesterov)
    make = lambda b1, b2: amsgrad_jax.scale_by_amsgrad(b1, b2, **kwargs)

    def total(b1, b2):
        steps = reference.run(convention, DECAYED, b1=b1, b2=b2, eps=1e-2, nesterov=nesterov)
        weights = np.sin(np.arange(1.0, 5))
        return np.array([(t + 1) * np.sum(weights * u) for t, (u, _) in enumerate(steps)])

    pairs = [(0.0, 0.0), (0.0, 0.9), (0.9, 0.0), (0.3, 0.4)]
    with enable_x64():
        got = by_decay_rates(make, pairs, DECAYED, "float64")
    for row, pair in enumerate(pairs):
        for i, by in enumerate(got):
            step = lambda h, i=i, pair=pair: total(*(b + h * (i == j) for j, b in enumerate(pair)))
            h = 1e-5  # of the third order
            want = (-11 * step(0) + 18 * step(h) - 9 * step(2 * h) + 2 * step(3 * h)) / (6 * h)
            np.testing.assert_allclose(by[row], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_derivatives_by_decay_rates_of_zero_are_those_of_optax(nesterov):
    with enable_x64():
        if nesterov:  # has no maximum: the gradients grow
            theirs = lambda b1, b2: optax.scale_by_adam(b1, b2, nesterov=True)
        else:
            theirs = lambda b1, b2: optax.scale_by_amsgrad(b1, b2)
        ours = lambda b1, b2: amsgrad_jax.scale_by_amsgrad(
            b1, b2, convention="optax", nesterov=nesterov
        )
        gradients = np.cumprod(1.5 + np.abs(DECAYED), axis=0)
        got, want = (
            by_decay_rates(make, [(0.0, 0.0)], gradients, "float64") for make in (ours, theirs)
        )
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 3, 30, 10_000])
def test_correction_and_its_derivatives(t):
    rates = np.float32([0.0, 1e-25, 1e-9, 0.1, 0.49999997, 0.5, 0.9, 0.999])
    correction = lambda b: _rule.correction(b, jnp.float32(t), jnp.dtype("float32"))
    exact = rates.astype(np.float64)
    want = 1 - exact**t, -t * exact ** (t - 1), -t * (t - 1) * exact ** max(t - 2, 0)
    derivatives = correction, jax.grad(correction), jax.grad(jax.grad(correction))
    for i, (function, value) in enumerate(zip(derivatives, want, strict=True)):
        with jax.debug_infs(True):  # of what `where` discards, too
            got = jax.vmap(function)(jnp.asarray(rates))
        # The factor t stands before a power that is rounded to within 1e-7 of 1.
        rtol, atol = (2e-7, 0) if i == 0 else (1e-5, 2e-7 * t**i)
        np.testing.assert_allclose(got, value, rtol=rtol, atol=atol)
    for rate in (0.0, 0.5):
        np.testing.assert_allclose(correction(rate), 1 - rate**t, rtol=2e-7)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_decay_rates_of_zero_make_no_infinity(convention):
    gradients = jnp.ones(3)

    def total(b1, b2):
        optimizer = amsgrad_jax.scale_by_amsgrad(b1, b2, convention=convention, nesterov=True)
        updates, state = optimizer.update(gradients, optimizer.init(gradients))
        return jnp.sum(updates + optimizer.update(2 * gradients, state)[0])

    with jax.debug_infs(True), jax.debug_nans(True), jax.disable_jit():
        total(0.0, 0.0)
        chex.assert_tree_all_finite(jax.grad(total, (0, 1))(jnp.zeros(()), jnp.zeros(())))
