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
    with pytest.raises(TypeError, match="convention must be 'paper', .*Convention, got None"):
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


# What people hand over by mistake. Every message is one line, and holds no tree.

SCALE = amsgrad_jax.scale_by_amsgrad


def fails(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    assert "Array([" not in text
    assert "array([" not in text


OPTIMIZERS = [
    SCALE(),
    SCALE(storage="packed"),
    amsgrad_jax.amsgrad(1e-3),
    amsgrad_jax.amsgrad(lambda count: 1e-3, storage="packed"),
    amsgrad_jax.amsgradw(1e-3),
    amsgrad_jax.amsgradw(1e-3, mask={"dense": {"w": True, "b": False}}),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@every_optimizer
def test_numbers_of_python_for_leaves(optimizer):
    with_number = {"dense": {"w": PARAMS["dense"]["w"], "b": 1.5}}
    message = r"must be arrays, but the leaf 'dense/b' is 1.5 of type float: jax.numpy.asar"
    fails(TypeError, "params " + message, optimizer.init, with_number)
    scalar = {"dense": {"w": PARAMS["dense"]["w"], "b": jnp.float32(1)}}
    state = amsgrad_jax.amsgrad(1e-3).init(scalar)
    gradients = {"dense": {"w": PARAMS["dense"]["w"], "b": 1.5}}
    fails(TypeError, "gradients " + message, amsgrad_jax.amsgrad(1e-3).update, gradients, state)
    numpy = jax.tree.map(np.asarray, PARAMS)
    optimizer.update(numpy, optimizer.init(numpy), numpy)
    scalars = {"dense": {"w": np.float32(2), "b": np.asarray(1.5, np.float32)}}
    optimizer.update(scalars, optimizer.init(scalars), scalars)


@every_optimizer
def test_state_and_gradients_swapped(optimizer):
    state = optimizer.init(PARAMS)
    message = r"got dict and a state as gradients: call update\(gradients, state\)"
    fails(TypeError, message, optimizer.update, state, PARAMS, PARAMS)
    # Of gradients that look like a chain, too.
    pair = (jnp.ones(2), jnp.ones(3))
    optimizer = amsgrad_jax.amsgrad(1e-3)
    fails(TypeError, "call update", optimizer.update, optimizer.init(pair), pair)


@every_optimizer
def test_no_state(optimizer):
    message = r"state must be what init .* got None: init\(params\) makes the first"
    fails(TypeError, message, optimizer.update, PARAMS, None, PARAMS)


@every_optimizer
@pytest.mark.parametrize("theirs", [optax.amsgrad(1e-3), optax.adamw(1e-3), optax.scale_by_adam()])
def test_state_of_optax(optimizer, theirs):
    message = "state must be what init of this optimizer returned, got .*, a state of Optax: "
    message += "amsgrad_jax.interop.from_optax converts it"
    fails(TypeError, message, optimizer.update, PARAMS, theirs.init(PARAMS), PARAMS)
    other = optax.sgd(1e-3).init(PARAMS)
    message = "got .*; amsgrad_jax.interop converts states of other libraries"
    fails(TypeError, message, optimizer.update, PARAMS, other, PARAMS)


def test_state_of_another_chain():
    state = amsgrad_jax.amsgrad(1e-3).init(PARAMS)
    message = "got tuple of .*amsgrad_jax.ScaleByAmsgradState.*, the state of another chain"
    fails(TypeError, message, amsgrad_jax.amsgradw(1e-3).update, PARAMS, state, PARAMS)
    scheduled = amsgrad_jax.amsgrad(lambda count: 1e-3)
    fails(TypeError, "must be the ScaleByScheduleState", scheduled.update, PARAMS, state)


@pytest.mark.parametrize("factory", [amsgrad_jax.amsgrad, amsgrad_jax.amsgradw, SCALE])
@pytest.mark.parametrize(
    ("params", "got"),
    [
        (PARAMS, "a dict"),
        ([jnp.ones(3)], "a list"),
        (jnp.ones((2, 3)), r"an array of shape \(2, 3\)"),
        ((p for p in [jnp.ones(3)]), "a generator"),
        (iter([jnp.ones(3)]), "a list_iterator"),
    ],
    ids=["dict", "list", "array", "generator", "iterator"],
)
def test_parameters_first_as_in_torch(factory, params, got):
    message = rf"must be a number in .*, got {got}; the optimizer gets the parameters in init"
    fails((TypeError, ValueError), message, factory, params, 1e-3)


def test_parameters_of_torch():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 2)
    for params, got in (
        (module.parameters(), "a generator"),
        (list(module.parameters()), "a list"),
        (module.weight, "an array of shape"),
    ):
        fails(TypeError, f"{got}.*in init", amsgrad_jax.amsgrad, params, lambda count: 1e-3)


MASK = "mask must be a tree of bools, or a function from the parameters to one"


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        ("bias", "'bias' of type str"),
        (1, "1 of type int"),
        ({"dense": {"w": True, "b": "no"}}, r"'no' of type str at 'dense/b'"),
        ({"dense": {"w": True, "b": 1}}, r"1 of type int at 'dense/b'"),
        (jnp.ones(3, bool), r"an array of shape \(3,\)"),
        ({"dense": lambda params: True}, r"a function at 'dense'"),
    ],
    ids=["text", "number", "text inside", "number inside", "array", "function inside"],
)
def test_masks_that_are_none(mask, got):
    fails(TypeError, f"{MASK}, got {got}", amsgrad_jax.amsgradw, 1e-3, mask=mask)


def test_masks_that_functions_make():
    for mask, got in (
        (lambda params: "bias", "'bias' of type str"),
        (lambda params: params, r"an array of shape \(3,\) at 'dense/b'"),
        (lambda params: jax.tree.map(lambda p: p.ndim, params), "1 of type int at"),
    ):
        optimizer = amsgrad_jax.amsgradw(1e-3, mask=mask)
        message = f"{MASK}; it returned something else, got {got}"
        fails(TypeError, message, optimizer.init, PARAMS)
        state = amsgrad_jax.amsgradw(1e-3, mask=True).init(PARAMS)
        fails(TypeError, message, optimizer.update, PARAMS, state, PARAMS)


def test_masks_that_do_not_fit():
    for mask in ({"other": True}, {"dense": {"w": True}}, [True]):
        optimizer = amsgrad_jax.amsgradw(1e-3, mask=mask)
        fails(ValueError, "mask must have the structure of the param", optimizer.init, PARAMS)


@pytest.mark.parametrize(
    ("mask", "w", "b"),
    [
        (None, 1, 1),
        (True, 1, 1),
        (False, 0, 0),
        ({"dense": True}, 1, 1),
        ({"dense": {"w": True, "b": False}}, 1, 0),
        ({"dense": {"w": np.True_, "b": jnp.asarray(False)}}, 1, 0),
        (lambda params: {"dense": False}, 0, 0),
        (lambda params: jax.tree.map(lambda p: p.ndim > 1, params), 1, 0),
        (jax.tree_util.Partial(lambda params: True), 1, 1),
    ],
)
def test_masks(mask, w, b):
    optimizer = amsgrad_jax.amsgradw(0.5, weight_decay=0.5, mask=mask)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["dense"]["w"], -0.25 * w)
    np.testing.assert_array_equal(updates["dense"]["b"], -0.25 * b)


def test_parameters_that_do_not_match_the_updates():
    optimizer = amsgrad_jax.amsgradw(1e-3)
    state = optimizer.init(PARAMS)
    fails(ValueError, "call update.updates, state, params.", optimizer.update, PARAMS, state)
    message = "params must be a tree like the updates"
    fails(ValueError, message, optimizer.update, PARAMS, state, PARAMS["dense"])
    swapped = {"dense": {"w": jnp.ones(3), "b": jnp.ones(3)}}
    message += r", but at 'dense/w' params has float32\[3\] and the updates have float32\[2, 3\]"
    fails(ValueError, message, optimizer.update, PARAMS, state, swapped)


@pytest.mark.parametrize("factory", [amsgrad_jax.amsgrad, amsgrad_jax.amsgradw])
@pytest.mark.parametrize(
    ("schedule", "jits"),
    [
        (optax.constant_schedule(-0.1), True),
        (lambda count: -0.1, True),
        (lambda count: float("nan"), True),
        (lambda count: jnp.float32(-0.1), False),
        (lambda count: count - 1.0, False),
        (optax.linear_schedule(-1.0, -2.0, 3), False),
    ],
)
def test_learning_rates_of_schedules(factory, schedule, jits):
    optimizer = factory(schedule)
    state = optimizer.init(PARAMS)
    message = r"learning_rate must be a number in \[0, inf\), got (-|nan)"
    for update in [optimizer.update] + jits * [jax.jit(optimizer.update)]:
        fails(ValueError, message, update, PARAMS, state, PARAMS)
    message = r"learning_rate must be .* got an array of shape \(2,\)"
    fails(ValueError, message, factory(lambda _: jnp.ones(2)).update, PARAMS, state, PARAMS)


def test_weight_decay():
    fails(
        ValueError, "weight_decay must be .*got -0.1", amsgrad_jax.amsgradw, 1e-3, weight_decay=-0.1
    )
    inject = optax.inject_hyperparams(amsgrad_jax.amsgradw)
    fails(ValueError, "weight_decay must be", inject(1e-3, weight_decay=-0.1).init, PARAMS)


@every_optimizer
def test_a_count_with_axes_needs_vmap(optimizer):
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    state = jax.vmap(optimizer.init)(params)
    message = r"several runs: its count has shape \(2,\), .* Wrap the call in jax.vmap"
    fails(ValueError, message, optimizer.update, params, state, params)
    fails(ValueError, message, jax.jit(optimizer.update), params, state, params)
    updates, after = jax.vmap(optimizer.update)(params, state, params)
    one, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["dense"]["w"][0], one["dense"]["w"], rtol=0.07)
    assert jax.tree.leaves(after)[0].shape == (2,)


@pytest.mark.parametrize("value", ["1e-3", None, True, 1e-3j, jnp.ones(1), np.bool_(True)])
def test_a_wrong_number_is_not_taken_for_parameters(value):
    with pytest.raises((TypeError, ValueError), match="learning_rate must be a number") as caught:
        amsgrad_jax.amsgrad(value)
    assert "init" not in str(caught.value)
