"""Bad input raises at the earliest moment, and the message says what to change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from tests.variants import CONVENTIONS

PARAMS = {"dense": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}


@pytest.mark.parametrize("name", ["b1", "b2", "eps", "eps_root", "learning_rate", "weight_decay"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-0.1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (jnp.asarray(-0.1), ValueError),
        (np.float32(-0.1), ValueError),
        (np.ones(2), ValueError),
        (jnp.ones((1,)), ValueError),
        ("0.5", TypeError),
        (None, TypeError),
        (True, TypeError),
        (np.True_, TypeError),
        (0.5j, TypeError),
        (jnp.asarray(0.5j), TypeError),
        ([0.5], TypeError),
    ],
    ids=repr,
)
def test_hyperparameter(name, value, error):
    factory = amsgrad_jax.amsgradw if name == "weight_decay" else amsgrad_jax.amsgrad
    with pytest.raises(error, match=rf"{name} must be a number in \[0, (1|inf)\), got"):
        factory(**{"learning_rate": 1e-3, name: value})


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_decay_rate_of_one(name):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, 1\), got 1.0"):
        amsgrad_jax.scale_by_amsgrad(**{name: 1.0})


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_decay_rate_in_half_precision(name):
    """0.999 is 1 in bfloat16; injected hyperparameters take the dtype of parameters."""
    factory = optax.inject_hyperparams(amsgrad_jax.amsgrad)
    params = jnp.ones(3, jnp.bfloat16)
    for init in (factory(1e-3).init, jax.jit(factory(1e-3).init)):
        with pytest.raises(TypeError, match="bfloat16, where 0.999 rounds to 1"):
            init(params)
    with pytest.raises(TypeError, match=f"{name} must be"):
        amsgrad_jax.amsgrad(1e-3, **{name: jnp.asarray(0.5, jnp.float16)})
    wide = optax.inject_hyperparams(amsgrad_jax.amsgrad, hyperparam_dtype=jnp.float32)(1e-3)
    updates, _ = wide.update(params, wide.init(params), params)
    np.testing.assert_allclose(np.asarray(updates, np.float32), -1e-3, rtol=4e-3)


def test_schedule_is_checked_when_it_is_called():
    optimizer = amsgrad_jax.scale_by_amsgrad(b1=lambda count: 1.5)
    with pytest.raises(ValueError, match=r"b1 must be a number in \[0, 1\), got 1.5"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
    optimizer = amsgrad_jax.scale_by_amsgrad(b1=lambda count: jnp.zeros(2))
    with pytest.raises(ValueError, match=r"b1 must be .* got an array of shape \(2,\)"):
        jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS))


def test_schedule_for_weight_decay():
    with pytest.raises(TypeError, match=r"weight_decay must be a number in \[0, inf\)"):
        amsgrad_jax.amsgradw(1e-3, weight_decay=lambda count: 0.1)


@pytest.mark.parametrize("factory", [amsgrad_jax.amsgrad, amsgrad_jax.amsgradw])
def test_unknown_names(factory):
    with pytest.raises(ValueError, match="unknown convention 'torch'") as caught:
        factory(1e-3, convention="torch")
    assert all(repr(name) in str(caught.value) for name in CONVENTIONS)
    with pytest.raises(
        TypeError, match="convention must be 'paper', .*, or an amsgrad_jax.Convention, got None"
    ):
        factory(1e-3, convention=None)
    with pytest.raises(ValueError, match="unknown storage 'half': it must be 'full' or 'packed'"):
        factory(1e-3, storage="half")
    with pytest.raises(TypeError, match="storage must be 'full' or 'packed', got None"):
        factory(1e-3, storage=None)
    with pytest.raises(TypeError, match="nesterov must be a bool, got 1 of type int"):
        factory(1e-3, nesterov=1)


def test_convention():
    with pytest.raises(ValueError, match="unknown correct_nu 'after': it must be 'never', 'bef"):
        amsgrad_jax.Convention(correct_mu=True, correct_nu="after")
    with pytest.raises(TypeError, match="eps_on must be 'corrected_root' or 'raw_root', got None"):
        amsgrad_jax.Convention(correct_mu=True, correct_nu="never", eps_on=None)
    with pytest.raises(TypeError, match="correct_mu must be a bool, got 1"):
        amsgrad_jax.Convention(correct_mu=1, correct_nu="never")
    with pytest.raises(dataclasses.FrozenInstanceError):
        amsgrad_jax.PAPER.correct_mu = True


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.ones(2, jnp.int32), "int32"),
        (np.ones(2, bool), "bool"),
        (jax.random.key(0), "key<fry>"),
        (3, "int"),
        ("relu", "str"),
    ],
    ids=str,
)
def test_parameters_that_are_no_numbers(leaf, dtype):
    params = {"dense": [jnp.ones(2), {"steps": leaf}]}
    message = "params must be floating point or complex, but the leaf 'dense/1/steps'"
    with pytest.raises(TypeError, match=f"{message} has dtype {dtype}"):
        amsgrad_jax.amsgrad(1e-3).init(params)


def test_integer_gradients():
    optimizer = amsgrad_jax.scale_by_amsgrad()
    gradients = jax.tree.map(lambda p: p.astype(int), PARAMS)
    with pytest.raises(TypeError, match="gradients must be .* the leaf 'dense/b' has dtype int"):
        optimizer.update(gradients, optimizer.init(PARAMS))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (
            {"dense": {"w": jnp.ones((2, 3))}},
            ValueError,
            r"'dense/b' has no gradient, the state has float32\[3\]",
        ),
        (
            {"dense": {"w": jnp.ones((2, 3)), "b": None}},
            ValueError,
            r"'dense/b' has no gradient, the state has float32\[3\]",
        ),
        (
            {"dense": PARAMS["dense"], "extra": jnp.ones(1)},
            ValueError,
            r"'extra', float32\[1\], is not in the state",
        ),
        (
            {"dense": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}},
            ValueError,
            r"'dense/w' is float32\[3, 2\], the state was made for shape \[2, 3\]",
        ),
        (
            {"dense": {"w": jnp.ones((2, 3)), "b": 1j * jnp.ones(3)}},
            TypeError,
            r"'dense/b' is complex64\[3\], the state was made for real parameters",
        ),
    ],
    ids=["missing", "none", "extra", "shape", "complex"],
)
def test_gradients_that_do_not_match_the_state(gradients, error, message, jit):
    optimizer = amsgrad_jax.scale_by_amsgrad()
    update = jax.jit(optimizer.update) if jit else optimizer.update
    with pytest.raises(error, match="gradients do not match the optimizer state: " + message):
        update(gradients, optimizer.init(PARAMS))


def test_gradients_in_other_containers():
    optimizer = amsgrad_jax.scale_by_amsgrad()
    with pytest.raises(ValueError, match=r"containers differ, .*\[\*, \*\].* and .*\(\*, \*\)"):
        optimizer.update([jnp.ones(1), jnp.ones(2)], optimizer.init((jnp.ones(1), jnp.ones(2))))


def test_state_of_another_transformation():
    optimizer = amsgrad_jax.scale_by_amsgrad()
    chain = amsgrad_jax.amsgrad(1e-3)
    with pytest.raises(TypeError, match="state must be what init .* returned, got tuple"):
        optimizer.update(PARAMS, chain.init(PARAMS))
    with pytest.raises(TypeError, match="got optax.ScaleByAdamState"):
        optimizer.update(PARAMS, optax.scale_by_adam().init(PARAMS))


def test_weight_decay_without_parameters():
    optimizer = amsgrad_jax.amsgradw(1e-3)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
