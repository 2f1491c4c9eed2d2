"""The sequences reach what the comparisons are about: else agreement would say little."""

import functools
import itertools

import numpy as np
import optax
import pytest

import amsgrad_jax
from tests.parity import errors, sequences, trajectories
from tests.variants import CONVENTIONS

ADAM = "adam, without a maximum"


@functools.cache
def _trajectory(rule):
    optimizer = optax.adam(1e-3) if rule == ADAM else amsgrad_jax.amsgrad(1e-3, convention=rule)
    return trajectories.of_optax(optimizer, sequences.gradients(), sequences.start(), "float32")


@pytest.mark.parametrize(
    "make", [sequences.gradients, sequences.growing_gradients, sequences.start]
)
def test_same_in_both_dtypes(make):
    for array in make().values():
        np.testing.assert_array_equal(array, array.astype("float32"))


def test_gradients_reach_the_magnitudes():
    magnitudes = np.concatenate([np.abs(array).ravel() for array in sequences.gradients().values()])
    assert magnitudes.min() == 0
    assert magnitudes[magnitudes > 0].min() < 1e-6
    assert magnitudes.max() > 9e5


def test_growing_gradients_never_shrink():
    for array in sequences.growing_gradients().values():
        assert (np.diff(np.abs(array), axis=0) >= 0).all()


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations([*CONVENTIONS, ADAM], 2)))
def test_tell_conventions_apart(one, other):
    error = errors.relative(_trajectory(one)[1:], errors.reference(_trajectory(other)))
    # Twenty times the widest tolerance, at the end of the run, and not in one place only.
    assert (error[-1] > 1e-3).sum() >= 3
