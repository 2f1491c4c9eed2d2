"""The paper's schedules beside their closed forms, and inside the transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amsgrad_jax
from amsgrad_jax import schedules
from tests import reference
from tests.variants import enable_x64

COUNTS = np.array([0, 1, 2, 9, 99, 999, 99_999, 10_000_000, 2**31 - 1])
STEPS = COUNTS + 1.0

CASES = {
    "inverse_sqrt": (schedules.inverse_sqrt(0.3), 0.3 / np.sqrt(STEPS)),
    "decaying_b1": (schedules.decaying_b1(0.9, 0.999), 0.9 * 0.999 ** (STEPS - 1)),
    "decaying_b1, slowly": (schedules.decaying_b1(0.9, 1 - 1e-8), 0.9 * (1 - 1e-8) ** (STEPS - 1)),
    "decaying_b1, not at all": (schedules.decaying_b1(0.9, 1), np.full(len(STEPS), 0.9)),
    "inverse_b1": (schedules.inverse_b1(0.9), 0.9 / STEPS),
    "running_mean_b2": (schedules.running_mean_b2(), 1 - 1 / STEPS),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_is_its_closed_form(name):
    schedule, expected = CASES[name]
    values = [schedule(jnp.int32(count)) for count in COUNTS]
    assert {value.dtype for value in values} == {jnp.dtype(jnp.float32)}
    # exp turns a rounding of its argument, up to -100 at the 100,000th step, into 6e-6.
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-37)
    np.testing.assert_array_equal(jax.jit(jax.vmap(schedule))(jnp.asarray(COUNTS)).shape, (9,))
    np.testing.assert_allclose(schedule(2), expected[2], rtol=1e-6)  # a Python count
    with enable_x64(True):
        doubles = [schedule(jnp.int32(count)) for count in COUNTS]
        np.testing.assert_allclose(doubles, expected, rtol=1e-7, atol=1e-300)


@settings(max_examples=50, deadline=None)
@given(
    alpha=st.floats(1e-6, 1e3),
    b1=st.floats(0, 0.999),
    decay=st.floats(0.01, 1),
    count=st.integers(0, 2**31 - 2),
)
def test_rates_never_rise_and_stay_in_range(alpha, b1, decay, count):
    for schedule, first in (
        (schedules.inverse_sqrt(alpha), alpha),
        (schedules.decaying_b1(b1, decay), b1),
        (schedules.inverse_b1(b1), b1),
    ):
        assert 0 <= schedule(count + 1) <= schedule(count) <= schedule(0)
        assert schedule(0) == np.float32(first)


def test_traced_arguments_are_taken():
    values = jax.vmap(lambda alpha: schedules.inverse_sqrt(alpha)(3))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(values, [0.5, 1.0])


def test_the_paper_with_its_schedules_is_the_reference():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((60, 5))
    optimizer = amsgrad_jax.amsgrad(
        schedules.inverse_sqrt(0.1),
        b1=schedules.decaying_b1(0.9, 0.95),
        b2=0.99,
        eps=1e-8,
        convention="paper",
    )
    state = optimizer.init(jnp.zeros(5))
    moments = reference.Moments(*np.zeros((3, 5)))
    for t, gradient in enumerate(gradients, start=1):
        update, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state)
        b1 = 0.9 * 0.95 ** (t - 1)
        direction, moments = reference.step("paper", gradient, moments, t, b1, 0.99, 1e-8)
        np.testing.assert_allclose(update, -0.1 / np.sqrt(t) * direction, rtol=1e-4, atol=1e-7)


def test_with_a_running_mean_nu_is_the_mean_of_squares():
    gradients = np.random.default_rng(1).standard_normal(3000)
    transformation = amsgrad_jax.scale_by_amsgrad(
        b1=0.0, b2=schedules.running_mean_b2(), eps=0.0, convention="paper"
    )

    def step(state, gradient):
        update, state = transformation.update(gradient, state)
        return state, (update, state.nu, state.nu_max)

    _, (updates, nu, nu_max) = jax.lax.scan(
        step, transformation.init(jnp.zeros(())), jnp.asarray(gradients, jnp.float32)
    )
    mean = np.cumsum(gradients**2) / np.arange(1, 3001)
    largest = np.maximum.accumulate(mean)
    np.testing.assert_allclose(nu, mean, rtol=1e-5)  # 2e-6 seen; it grows like t / 1e8
    np.testing.assert_allclose(nu_max, largest, rtol=1e-5)
    np.testing.assert_allclose(updates, gradients / np.sqrt(largest), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.inverse_sqrt(-0.1), ValueError, r"alpha .*\[0, inf\), got -0.1"),
        (lambda: schedules.inverse_sqrt(np.inf), ValueError, "alpha .*got inf"),
        (lambda: schedules.inverse_sqrt("0.1"), TypeError, "alpha .*got '0.1' of type str"),
        (lambda: schedules.inverse_sqrt(np.ones(2)), ValueError, r"alpha .*of shape \(2,\)"),
        (lambda: schedules.inverse_b1(1.0), ValueError, r"b1 .*\[0, 1\), got 1.0"),
        (lambda: schedules.inverse_b1(lambda count: 0.9), TypeError, "b1 .*got a function"),
        (lambda: schedules.decaying_b1(-0.5, 0.9), ValueError, r"b1 .*\[0, 1\), got -0.5"),
        (lambda: schedules.decaying_b1(0.9, 0.0), ValueError, r"decay .*\(0, 1\], got 0.0"),
        (lambda: schedules.decaying_b1(0.9, 1.5), ValueError, r"decay .*\(0, 1\], got 1.5"),
        (lambda: schedules.decaying_b1(0.9, np.nan), ValueError, "decay .*got nan"),
        (lambda: schedules.decaying_b1(0.9, jnp.ones(())), TypeError, "decay must be a Python"),
        (lambda: schedules.decaying_b1(0.9, True), TypeError, "decay .*got True of type bool"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
