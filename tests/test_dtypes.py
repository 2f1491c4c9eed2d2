"""One rounding: updates come back in the dtype of the gradients, after the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from tests import reference
from tests.variants import enable_x64

NARROW = ("bfloat16", "float16", "float8_e4m3fn")
DTYPES = (*NARROW, "float32", "float64", "complex64")
RATE = 0.3

# What a learning rate can be, made where x64 is on or off.
RATES = {
    "float": lambda: RATE,
    "float32": lambda: jnp.float32(RATE),
    "bfloat16": lambda: jnp.asarray(RATE, jnp.bfloat16),
    "float64": lambda: jnp.asarray(RATE, "float64"),
    "numpy": lambda: np.float64(RATE),
    "integer": lambda: 1,
    "schedule": lambda: lambda count: RATE,
    "float32 schedule": lambda: lambda count: jnp.float32(RATE) + 0 * count.astype("float32"),
    "bfloat16 schedule": lambda: lambda count: jnp.asarray(RATE, jnp.bfloat16),
    "float64 schedule": lambda: lambda count: jnp.asarray(RATE, "float64"),
    "injected": lambda: "injected",
}
FACTORIES = [
    (amsgrad_jax.amsgrad, "full"),
    (amsgrad_jax.amsgrad, "packed"),
    (amsgrad_jax.amsgradw, "full"),
    (amsgrad_jax.amsgradw, "packed"),
]
every_factory = pytest.mark.parametrize(("factory", "storage"), FACTORIES)
every_case = pytest.mark.parametrize(
    ("dtype", "rate"),
    [(dtype, rate) for dtype in DTYPES for rate in ("float", "injected")]
    + [("bfloat16", rate) for rate in RATES if rate not in ("float", "injected")]
    + [("complex64", rate) for rate in ("bfloat16", "schedule", "float64")]
    + [("float64", "float32"), ("float64", "float64 schedule"), ("float32", "float64")],
)


def made(factory, rate, **arguments):
    """The optimizer with a learning rate of that kind."""
    rate = RATES[rate]()
    if isinstance(rate, str):
        inject = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)
        return inject(RATE, **arguments)
    return factory(rate, **arguments)


def value_of(rate):
    """The learning rate in float64."""
    rate = RATES[rate]()
    if callable(rate):
        rate = rate(jnp.int32(0))
    return float(np.float32(RATE)) if isinstance(rate, str) else float(rate)


def precision(rate, dtype, storage):
    """The precision that a case needs; no case is left where a word cannot hold the moments."""
    if storage == "packed" and dtype == "complex64":
        pytest.skip("a word has no room for complex moments")
    return enable_x64(dtype == "float64" or "float64" in rate)


def tree(values, dtype):
    """Parameters of two shapes."""
    values = np.asarray(values, np.float64)
    if dtype == "complex64":
        values = values * (1 - 0.5j)
    return {"w": jnp.asarray(values, dtype), "s": jnp.asarray(values[0], dtype)}


STEPS = [(0.5, -1.25, 3.0), (-2.0, 0.75, 0.5), (1.0, 1.0, -0.0625)]
START = (1.0, -0.4375, 0.21875)  # float8 has 4 digits


def updates_of(optimizer, dtype, steps=STEPS, transform=lambda update: update):
    params = tree(START, dtype)
    state = optimizer.init(params)
    step = transform(optimizer.update)
    made = []
    for gradient in steps:
        update, state = step(tree(gradient, dtype), state, params)
        made.append(update)
    return made, state


def rounds_to(got, exact):
    """Whether ``got`` is ``exact`` rounded once, but for a float32 rounding before."""
    around = [np.asarray(exact * (1 + by)).astype(got.dtype) for by in (-1e-6, 1e-6)]
    return (got == around[0]) | (got == around[1])


@every_case
@every_factory
def test_updates_are_rounded_once(dtype, factory, storage, rate):
    with precision(rate, dtype, storage):
        got, _ = updates_of(made(factory, rate, storage=storage), dtype)
        for update, gradient in zip(got, STEPS, strict=True):
            dtypes = jax.tree.map(lambda leaf: leaf.dtype, (update, tree(gradient, dtype)))
            assert dtypes[0] == dtypes[1]
        if dtype in NARROW:  # bit by bit what float32 gradients make
            want, _ = updates_of(made(factory, rate, storage=storage), "float32")
            want = jax.tree.map(lambda leaf: leaf.astype(dtype), want)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_array_equal(a, b)
        if storage == "full":  # and what the float64 formulas make
            gradients = [np.asarray(tree(gradient, dtype)["w"], complex) for gradient in STEPS]
            if dtype != "complex64":
                gradients = [gradient.real for gradient in gradients]
            start = np.asarray(tree(START, dtype)["w"], gradients[0].dtype)
            b1, b2 = (0.9, 0.999) if rate != "injected" else map(float, np.float32([0.9, 0.999]))
            steps = reference.run("pytorch", gradients, b1=b1, b2=b2, eps=1e-8)
            decay = 1e-2 if factory is amsgrad_jax.amsgradw else 0
            for update, (u, _) in zip(got, steps, strict=True):
                exact = -value_of(rate) * (u + decay * start)
                if dtype in NARROW:
                    assert np.all(rounds_to(np.asarray(update["w"]), exact))
                else:
                    precise = dtype == "float64" and rate != "injected"
                    allowed = 1e-14 if precise else 5e-6
                    np.testing.assert_allclose(update["w"], exact, rtol=allowed)


WRAPPERS = {
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "conditionally_mask": lambda inner: optax.conditionally_mask(inner, lambda count: count >= 0),
    "conditionally_transform": lambda inner: optax.conditionally_transform(
        inner, lambda count: count >= 0
    ),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 1).gradient_transformation(),
}


# Which optimizer is inside makes no difference to a wrapper: every one is, but not with every rate.
@pytest.mark.parametrize(
    ("rate", "factory", "storage"),
    [
        ("float32", amsgrad_jax.amsgrad, "full"),
        ("float32 schedule", amsgrad_jax.amsgradw, "packed"),
        ("injected", amsgrad_jax.amsgrad, "packed"),
        ("injected", amsgrad_jax.amsgradw, "full"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_optax_get_the_dtype_that_they_compare(wrapper, dtype, factory, storage, rate):
    optimizer = made(factory, rate, storage=storage)
    wrapped = WRAPPERS[wrapper](optimizer)
    got, _ = updates_of(wrapped, dtype, transform=jax.jit)
    want, _ = updates_of(optimizer, dtype)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == dtype
        # XLA may contract products and sums, which now and then rounds to another word.
        allowed = 1 / 16 if storage == "packed" else 4 * jnp.finfo(dtype).eps
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=allowed
        )


@every_case
@every_factory
def test_strict_promotion(dtype, factory, storage, rate):
    def shapes(optimizer):  # promotion is a matter of tracing
        params = tree(START, dtype)
        state = jax.eval_shape(optimizer.init, params)
        return state, jax.eval_shape(optimizer.update, params, state, params)

    with precision(rate, dtype, storage):
        optimizer = made(factory, rate, storage=storage, nesterov=True)
        want = shapes(optimizer)
        with jax.numpy_dtype_promotion("strict"):
            assert shapes(optimizer) == want


@every_factory
def test_states_are_those_of_optax(factory, storage):
    theirs = {amsgrad_jax.amsgrad: optax.adam, amsgrad_jax.amsgradw: optax.adamw}[factory]
    params = tree(START, "float32")
    masks = [{}] if factory is amsgrad_jax.amsgrad else [{}, {"mask": {"w": True, "s": False}}]
    for rate in (0.1, lambda count: 0.1):
        for mask in masks:
            ours, adam = factory(rate, storage=storage, **mask), theirs(rate, **mask)
            for state, other in zip(
                (ours.init(params), ours.update(params, ours.init(params), params)[1]),
                (adam.init(params), adam.update(params, adam.init(params), params)[1]),
                strict=True,
            ):
                assert jax.tree.structure(state[1:]) == jax.tree.structure(other[1:])


def test_complex_updates_have_no_complex_products():
    """Infinity times a real number stays infinite; times a complex one its other part is NaN."""
    params = jnp.asarray([1 + 1j], jnp.complex64)
    optimizer = amsgrad_jax.amsgradw(jnp.float32(0.1), weight_decay=0.5)
    state = optimizer.init(params)
    bad = jnp.asarray([jax.lax.complex(jnp.float32(jnp.inf), jnp.float32(1))])
    updates, _ = optimizer.update(params, state, bad)
    assert jnp.isneginf(updates[0].real)
    np.testing.assert_allclose(updates[0].imag, -0.1 * (np.sqrt(0.5) + 0.5), rtol=1e-5)
    text = str(jax.make_jaxpr(optimizer.update)(params, state, params))
    assert not [line for line in text.splitlines() if "c64" in line and (" mul " in line)]


def test_a_mask_sees_the_parameters():
    seen = []

    def mask(params):
        seen.append(jax.tree.map(lambda param: param.dtype, params))
        return jax.tree.map(lambda param: param.dtype == jnp.bfloat16, params)

    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "none": None}
    optimizer = amsgrad_jax.amsgradw(0.1, weight_decay=0.5, mask=mask)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert all(dtypes == {"w": "bfloat16", "b": "float32", "none": None} for dtypes in seen)
    np.testing.assert_allclose(np.asarray(updates["w"], float), -0.05, rtol=2**-8)
    np.testing.assert_array_equal(updates["b"], 0)


def test_updates_may_lack_leaves_that_params_have():
    """As of Equinox: the model itself for params, where gradients are those of its arrays."""
    model = {"w": jnp.ones(2), "activation": jnp.tanh, "steps": jnp.int32(3)}
    arrays = {"w": model["w"], "activation": None, "steps": None}
    kernels = lambda params: jax.tree.map(lambda param: param.ndim > 0, params)
    for mask in (None, True, kernels, {"w": True, "activation": None, "steps": None}):
        optimizer = amsgrad_jax.amsgradw(0.1, weight_decay=0.5, mask=mask)
        gradients = {"w": jnp.zeros(2), "activation": None, "steps": None}
        updates, _ = optimizer.update(gradients, optimizer.init(arrays), model)
        np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
        assert updates["activation"] is updates["steps"] is None


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16"])
def test_parameters_of_a_narrow_dtype_train(name):
    params = {"w": jnp.asarray([1.0, -2.0, 4.0], name)}
    optimizer = amsgrad_jax.amsgradw(jnp.float32(0.25))
    state = optimizer.init(params)
    for _ in range(30):
        gradients = jax.tree.map(lambda p: 2 * p.astype(jnp.float32), params)
        gradients = jax.tree.map(lambda g: g.astype(name), gradients)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert params["w"].dtype == name
    assert jnp.sum(jnp.abs(params["w"].astype(jnp.float32))) < 2  # from 7
