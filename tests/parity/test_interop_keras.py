"""Runs that change between Keras's ``Adam`` or ``AdamW`` and ours, with their state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amsgrad_jax
from amsgrad_jax import interop
from tests.parity import sequences, trajectories
from tests.parity.continuing import LR, MORE, after, assert_same, expected, go_on, gradients
from tests.variants import enable_x64

keras = trajectories.keras_with_jax()


def _schedule():
    return keras.optimizers.schedules.ExponentialDecay(2 * LR, 10, 0.5)


def _adamw_with_exclusions():
    optimizer = keras.optimizers.AdamW(LR, weight_decay=0.5, amsgrad=True)
    optimizer.exclude_from_weight_decay(var_names=["scalar", "vector"])
    return optimizer


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(LR, amsgrad=True),
    "Adam, other betas, eps and schedule": lambda: keras.optimizers.Adam(
        _schedule(), 0.8, 0.99, 1e-3, amsgrad=True
    ),
    "AdamW": lambda: keras.optimizers.AdamW(LR, weight_decay=0.5, amsgrad=True),
    "AdamW, some without decay": _adamw_with_exclusions,
}


@pytest.fixture(autouse=True)
def _double():
    with enable_x64(True):
        yield


def _built(optimizer, params):
    variables = [
        keras.Variable(value, dtype=np.asarray(value).dtype.name, name=name)
        for name, value in params.items()
    ]
    optimizer.build(variables)
    return optimizer, variables


@functools.cache
def _runner(name):
    """Keras's steps, compiled; of the state it gets everything from its arguments."""
    optimizer, _ = _built(OPTIMIZERS[name](), sequences.start())

    def step(carry, gradient):
        ordered = [gradient[name] for name in sequences.SHAPES]  # jit sorts a dict
        carry = optimizer.stateless_apply(carry[1], ordered, carry[0])
        return carry, carry

    return jax.jit(lambda params, state, steps: jax.lax.scan(step, (params, state), steps)[1])


def _run(name, optimizer, variables, start, stop):
    """The parameters after each step; the optimizer and the variables are left after the last."""
    first = ([v.value for v in variables], [v.value for v in optimizer.variables])
    history = _runner(name)(*first, gradients(start, stop))
    everything = zip(variables + optimizer.variables, history[0] + history[1], strict=True)
    for variable, values in everything:
        variable.assign(values[-1])
    return dict(zip(sequences.SHAPES, history[0], strict=True))


def _values(variables):
    return dict(zip(sequences.SHAPES, [v.value for v in variables], strict=True))


@functools.cache
def _ours(name):
    """Our optimizer, of the arguments that we found in Keras's."""
    optimizer, _ = _built(OPTIMIZERS[name](), sequences.start())
    arguments = interop.from_keras(optimizer, sequences.start()).arguments
    if "weight_decay" in arguments:
        return amsgrad_jax.amsgradw(**arguments)
    return amsgrad_jax.amsgrad(**arguments)


@pytest.mark.parametrize(
    ("name", "k"), [("Adam", 0), ("Adam", 1), ("Adam", 300), *((name, 7) for name in OPTIMIZERS)]
)
def test_from_keras(name, k):
    theirs, variables = _built(OPTIMIZERS[name](), sequences.start())
    if k:
        _run(name, theirs, variables, 0, k)
    ours, params = _ours(name), _values(variables)
    taken = interop.from_keras(theirs, params).state
    assert int(taken.count) == k
    got = go_on(ours, params, interop.set_moments(ours.init(params), taken), k)
    assert_same(got, _run(name, theirs, variables, k, k + MORE))


@pytest.mark.parametrize(
    ("name", "k"), [("Adam", 0), ("Adam", 1), ("Adam", 300), *((name, 7) for name in OPTIMIZERS)]
)
def test_to_keras(name, k):
    ours = _ours(name)
    params, state = after(ours, k)
    theirs, variables = _built(
        OPTIMIZERS[name](), {name: params[name] for name in sequences.SHAPES}
    )
    interop.to_keras(state, params, theirs)
    assert_same(_run(name, theirs, variables, k, k + MORE), expected(ours, k))


def test_arguments():
    optimizer, _ = _built(_adamw_with_exclusions(), sequences.start())
    assert interop.from_keras(optimizer, sequences.start()).arguments == {
        "learning_rate": LR,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-7,
        "convention": "keras",
        "weight_decay": 0.5,
        "mask": {name: name not in ("scalar", "vector") for name in sequences.SHAPES},
    }


def test_another_convention_keeps_the_next_step():
    optimizer = keras.optimizers.Adam(LR, beta_2=0.99, epsilon=0.0, amsgrad=True)
    theirs, (variable,) = _built(optimizer, {"w": np.array([1.0, 2.0])})
    theirs.apply([jnp.array([1.0, -2.0])])
    params = {"w": variable.value}
    state, arguments = interop.from_keras(theirs, params, convention="optax")
    assert arguments["convention"] == "optax"
    ours = amsgrad_jax.amsgrad(**arguments)
    small = jnp.array([1e-3, -1e-2])
    updates, _ = ours.update({"w": small}, interop.set_moments(ours.init(params), state))

    back, _ = _built(keras.optimizers.Adam(LR, beta_2=0.99, amsgrad=True), params)
    interop.to_keras(state, params, back, convention="optax")
    for one, other in zip(back.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-15)

    theirs.apply([small])
    np.testing.assert_allclose(variable.value - params["w"], updates["w"], rtol=1e-12)


def test_without_amsgrad():
    theirs, (variable,) = _built(keras.optimizers.Adam(LR), {"w": np.ones(2)})
    theirs.apply([jnp.array([1.0, 2.0])])
    params = {"w": variable.value}
    with pytest.raises(ValueError, match="amsgrad is off in the Adam.*without_max='use_nu'"):
        interop.from_keras(theirs, params)
    taken = interop.from_keras(theirs, params, without_max="use_nu").state
    np.testing.assert_allclose(taken.nu["w"], 1e-3 * np.array([1.0, 4.0]), rtol=1e-12)
    np.testing.assert_array_equal(taken.nu_max["w"], taken.nu["w"])
    with pytest.raises(ValueError, match="amsgrad is off in the Adam.*make one with amsgrad=True"):
        interop.to_keras(taken, params, theirs)


@pytest.fixture
def network():
    """A trained model of Keras, its optimizer, and its parameters as a tree."""
    with enable_x64(False):
        layers = [keras.layers.Dense(3, name="first"), keras.layers.Dense(1, name="second")]
        model = keras.Sequential([keras.Input((2,)), *layers], name="net")
        optimizer = keras.optimizers.Adam(amsgrad=True)
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(np.eye(2), np.ones((2, 1)), epochs=3, verbose=0)
        params = {
            layer.name: {"kernel": layer.kernel.value, "bias": layer.bias.value} for layer in layers
        }
        yield model, optimizer, params


PATHS = ["first/kernel", "first/bias", "second/kernel", "second/bias"]


@pytest.mark.parametrize(
    "names",
    [
        dict(rename=lambda path: path.removeprefix("net/")),
        dict(rename={f"net/{path}": path for path in PATHS}),
        dict(names=PATHS),
        dict(names=["0", *PATHS[1:]], rename={"0": PATHS[0]}),
    ],
)
def test_names(network, names):
    model, optimizer, params = network
    state, arguments = interop.from_keras(optimizer, params, **names)
    assert int(state.count) == 3
    assert arguments["learning_rate"] == np.float32(1e-3)
    # The momentum of a variable, found by the name that Keras gave it.
    momentums = {v.name: v.value for v in optimizer.variables if v.name.endswith("_momentum")}
    for layer in params:
        for name, momentum in state.mu[layer].items():
            right = momentums[f"net_{layer}_{name}_momentum"]
            assert np.abs(right).max() > 0
            np.testing.assert_array_equal(momentum, right)
    # Into an optimizer with another step count, and the training goes on.
    model.compile(optimizer=keras.optimizers.AdamW(amsgrad=True), loss="mse")
    model.optimizer.build(model.trainable_variables)
    interop.to_keras(state, params, model.optimizer, **names)
    for one, other in zip(model.optimizer.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.value, other.value)
    model.fit(np.eye(2), np.ones((2, 1)), verbose=0)  # donates the arrays of the optimizer
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


PARAMS = {"a": np.ones(2, "float32"), "b": np.ones((2, 3), "float32")}


@pytest.mark.parametrize(
    ("params", "names", "message"),
    [
        ({"a": PARAMS["a"]}, {}, "'b' becomes 'b', which is no parameter"),
        ({**PARAMS, "c": PARAMS["a"]}, {}, "'c' is none of the optimizer's, which are 'a', 'b'"),
        ({**PARAMS, "b": PARAMS["a"]}, {}, r"'b' has shape \(2, 3\), the parameter .* \(2,\)"),
        (PARAMS, dict(rename={"a": "b"}), "'a' and 'b' both become 'b'"),
        (PARAMS, dict(rename={"x": "b"}), "rename has 'x', which no parameter is called"),
        (PARAMS, dict(names=["a"]), "1 names for the 2 variables of the Adam"),
        (PARAMS, dict(names=["a", "b", "c"]), "3 names for the 2 variables of the Adam"),
        (PARAMS, dict(convention="adam"), "unknown convention 'adam'"),
        (PARAMS, dict(names=["b", "a"]), "names has 'b' at place 0, where the optimizer has 'a'"),
        ({"a": PARAMS["a"]}, dict(rename=["b"]), "rename must be a mapping or a function"),
    ],
)
def test_what_does_not_fit(params, names, message):
    optimizer, _ = _built(keras.optimizers.Adam(amsgrad=True), PARAMS)
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_keras(optimizer, params, **names)
    before = [np.asarray(v.value) for v in optimizer.variables]
    state = amsgrad_jax.scale_by_amsgrad().init(params)
    ones = jax.tree.map(jnp.ones_like, state)
    with pytest.raises((TypeError, ValueError), match=message):
        interop.to_keras(ones, params, optimizer, **names)
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: keras.optimizers.Adam(amsgrad=True),
            ValueError,
            "the Adam is not built .*, before a file is loaded",
        ),
        (
            lambda: _built(
                keras.optimizers.Adam(amsgrad=True, use_ema=True, ema_overwrite_frequency=5), PARAMS
            )[0],
            ValueError,
            "every 5 steps, .* set its ema_overwrite_frequency to None",
        ),
        (
            lambda: _built(
                keras.optimizers.Adam(amsgrad=True, gradient_accumulation_steps=2), PARAMS
            )[0],
            ValueError,
            "accumulates gradients over 2 steps",
        ),
        (lambda: _built(keras.optimizers.Nadam(), PARAMS)[0], TypeError, "got Nadam"),
        (lambda: None, TypeError, "Adam or AdamW, got NoneType"),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(amsgrad=True)),
            TypeError,
            "got LossScaleOptimizer: pass its inner_optimizer",
        ),
    ],
)
def test_other_optimizers(make, error, message):
    state = amsgrad_jax.scale_by_amsgrad().init(PARAMS)
    with pytest.raises(error, match=message):
        interop.from_keras(make(), PARAMS)
    with pytest.raises(error, match=message):
        interop.to_keras(state, PARAMS, make())


def test_a_variable_that_is_left_out():
    optimizer, _ = _built(keras.optimizers.AdamW(amsgrad=True), PARAMS)
    optimizer.apply([jnp.ones(2), jnp.ones((2, 3))])
    params, rename = {"b": PARAMS["b"]}, {"a": None}
    state, _ = interop.from_keras(optimizer, params, rename=rename)
    assert list(state.mu) == ["b"]
    before = [np.asarray(v.value) for v in optimizer.variables]
    interop.to_keras(state, params, optimizer, rename=rename)
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


@pytest.mark.parametrize("options", [dict(use_ema=True), dict(ema_overwrite_frequency=5)])
def test_an_average_that_is_not_written_into_the_variables(options):
    optimizer, _ = _built(keras.optimizers.Adam(amsgrad=True, **options), PARAMS)
    optimizer.apply([jnp.ones(2), jnp.ones((2, 3))])
    state, _ = interop.from_keras(optimizer, PARAMS)
    before = [np.asarray(v.value) for v in optimizer.variables]
    interop.to_keras(state, PARAMS, optimizer)
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_unknown_without_max():
    optimizer, _ = _built(keras.optimizers.Adam(amsgrad=True), PARAMS)
    with pytest.raises(ValueError, match="unknown without_max 'nu': .* 'raise' or 'use_nu'"):
        interop.from_keras(optimizer, PARAMS, without_max="nu")
