"""Moments by the names of parameters: out of the states of chains, and into them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import _names, _state, diagnostics, interop, remedies
from tests.variants import enable_x64

PARAMS = {
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "count": jnp.float32(2),
    "rest": [jnp.ones(1), None],
}
MASK = {"dense": {"kernel": True, "bias": False}, "count": True, "rest": [False, None]}
INVERSE = jax.tree.map(lambda leaf: not leaf, MASK)
SCHEDULE = optax.linear_schedule(1.0, 0.0, 100)

# The number of step counts in each, beside those of the moments.
OPTIMIZERS = {
    "alone": (amsgrad_jax.scale_by_amsgrad(), 0),
    "chain": (optax.chain(optax.trace(0.9), amsgrad_jax.amsgrad(0.1)), 0),
    "decay": (amsgrad_jax.amsgradw(0.1, mask=MASK), 0),
    "schedule": (amsgrad_jax.amsgrad(SCHEDULE), 1),
    "masked": (
        optax.chain(
            optax.masked(amsgrad_jax.amsgrad(SCHEDULE), MASK),
            optax.masked(amsgrad_jax.amsgrad(0.1), INVERSE),
        ),
        1,
    ),
    "partition": (
        optax.partition(
            {True: amsgrad_jax.amsgrad(SCHEDULE), False: amsgrad_jax.amsgrad(SCHEDULE)}, MASK
        ),
        2,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(amsgrad_jax.amsgrad)(SCHEDULE), 2),
    "MultiSteps": (
        optax.MultiSteps(
            amsgrad_jax.amsgrad(SCHEDULE), every_k_schedule=2
        ).gradient_transformation(),
        2,
    ),
    "apply_if_finite": (optax.apply_if_finite(amsgrad_jax.amsgrad(0.1), 3), 0),
    "conditionally_mask": (
        optax.conditionally_mask(amsgrad_jax.amsgrad(SCHEDULE), lambda step: step >= 0),
        2,
    ),
    "conditionally_transform": (
        optax.conditionally_transform(amsgrad_jax.amsgrad(0.1), lambda step: step >= 0),
        1,
    ),
    "add_noise": (optax.chain(amsgrad_jax.amsgrad(0.1), optax.add_noise(0.1, 0.5, 0)), 1),
    "reset_max_when": (
        remedies.reset_max_when(amsgrad_jax.amsgrad(SCHEDULE), lambda count: count < 0),
        2,
    ),
    "watch": (diagnostics.watch(amsgrad_jax.amsgrad(0.1), 10), 1),
    "stochastic_rounding": (
        optax.chain(amsgrad_jax.amsgrad(0.1), amsgrad_jax.stochastic_rounding()),
        1,
    ),
}


def _moments(params, count=7):
    """Moments that differ in every element and from each other."""
    paths = sorted(_names.by_name(params))

    def tree(offset):
        leaves = {
            path: offset
            + 10 * paths.index(path)
            + np.arange(float(np.size(leaf))).reshape(np.shape(leaf))
            for path, leaf in _names.by_name(params).items()
        }
        return _names.like(params, leaves)

    return amsgrad_jax.ScaleByAmsgradState(jnp.array(count), tree(100), tree(200), tree(300))


def _numbers(tree):
    """The tree with the numbers of its random keys."""
    is_key = lambda leaf: jax.dtypes.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def _same(got, right):
    assert jax.tree.structure(got) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, got, right)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_set_then_get(name):
    optimizer, other_counts = OPTIMIZERS[name]
    before = optimizer.init(PARAMS)
    moments = _moments(PARAMS)
    state = interop.set_moments(before, moments)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert dtypes(state) == dtypes(before)
    _same(interop.get_moments(state, PARAMS), moments)

    counts = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == "int32" and leaf == 7]
    assert len(counts) == len(_state.find_states(state)) + other_counts
    # What is no moment and no step count is as it was.
    changed = sum(
        not np.array_equal(*pair)
        for pair in zip(*map(jax.tree.leaves, map(_numbers, (state, before))), strict=True)
    )
    assert changed == 3 * len(jax.tree.leaves(PARAMS)) + len(counts)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_goes_on_as_if_never_moved(storage):
    optimizer = optax.chain(
        optax.inject_hyperparams(amsgrad_jax.amsgrad, static_args=("storage", "convention"))(
            SCHEDULE, storage=storage
        ),
        optax.conditionally_mask(optax.scale(0.5), lambda step: step % 2 == 0),
    )
    params = {"count": jnp.ones(3), "w": jnp.arange(4.0)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(3):
        _, state = update(params, state)
    moments = interop.get_moments(state, params)
    moved = interop.set_moments(optimizer.init(params), moments)
    got, _ = update(params, moved)
    expected, _ = update(params, state)
    _same(got, expected)


SKIPPING = {
    "a schedule around apply_if_finite": optax.chain(
        optax.apply_if_finite(amsgrad_jax.scale_by_amsgrad(), 3),
        optax.scale_by_learning_rate(SCHEDULE),
    ),
    "inject_hyperparams": optax.inject_hyperparams(
        lambda learning_rate: optax.apply_if_finite(amsgrad_jax.amsgrad(learning_rate), 3)
    )(SCHEDULE),
    "conditionally_mask": optax.conditionally_mask(
        amsgrad_jax.amsgrad(0.1), lambda step: step % 2 == 0
    ),
    "MultiSteps": optax.chain(
        optax.MultiSteps(amsgrad_jax.scale_by_amsgrad(), 4).gradient_transformation(),
        optax.scale_by_learning_rate(SCHEDULE),
    ),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_setting_what_was_got_changes_nothing(name):
    """Also where some updates are skipped, so that other counts are larger than the moments'."""
    optimizer, params = SKIPPING[name], {"w": jnp.arange(4.0)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for value in (1.0, jnp.nan, 2.0, jnp.nan, 3.0):
        _, state = update({"w": params["w"] + value}, state, params)
    moments = interop.get_moments(state, params)
    _same(interop.set_moments(state, moments), state)
    later = moments._replace(count=moments.count + 10)
    pairs = zip(*map(jax.tree.leaves, (interop.set_moments(state, later), state)), strict=True)
    for one, other in pairs:
        assert np.all((one == other) | np.isnan(other)) or one == other + 10


@pytest.mark.parametrize(
    "other",
    [
        optax.ema(0.9),
        optax.scale_by_adam(),
        optax.scale_by_belief(),
        optax.scale_by_lion(),
        optax.apply_every(3),
        optax.contrib.reduce_on_plateau(),
        optax.contrib.muon(0.1),
    ],
    ids=lambda transformation: transformation.init.__qualname__.partition(".")[0],
)
def test_counts_of_others_stay_with_their_accumulators(other):
    """The next update of an empty optax.ema with the count 1,000 is 100 times too small."""
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    before = other.init(params)
    both = (amsgrad_jax.scale_by_amsgrad().init(params), before)
    both = interop.set_moments(both, _moments(params, 1000))
    _same(interop.get_moments(both, params), _moments(params, 1000))
    _, theirs = both
    _same(theirs, before)


def test_an_unknown_count_is_left_alone():
    class CustomState(NamedTuple):
        count: jax.Array
        average: jax.Array

    custom = CustomState(jnp.zeros((), jnp.int32), jnp.zeros(3))
    state = (amsgrad_jax.scale_by_amsgrad().init(PARAMS), custom)
    _same(interop.set_moments(state, _moments(PARAMS))[1], custom)


def test_an_integer_called_count_is_left_alone():
    params = {"count": jnp.int32(2), "w": jnp.ones(3)}
    optimizer = optax.chain(
        optax.trace(0.9),  # has an integer for each integer parameter
        optax.masked(amsgrad_jax.amsgrad(0.1), {"count": False, "w": True}),
    )
    trace, _ = interop.set_moments(optimizer.init(params), _moments({"w": np.ones(3)}))
    assert int(trace.trace["count"]) == 0


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_no_two_leaves_share_an_array(storage):
    """One buffer twice in a state could not be donated."""
    moments = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _moments(PARAMS))
    moments = moments._replace(count=jnp.int32(7))
    optimizer = amsgrad_jax.amsgrad(SCHEDULE, storage=storage)
    for old in (optimizer.init(PARAMS), jax.tree.map(np.array, optimizer.init(PARAMS))):
        state = interop.set_moments(old, moments)
        both = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((moments, state))]
        assert len(set(both)) == len(both)
    state = interop.set_moments(jax.eval_shape(optimizer.init, PARAMS), moments)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    if storage == "full":
        assert state[0].mu["dense"]["kernel"] is moments.mu["dense"]["kernel"]


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_into_shapes(storage):
    optimizer = amsgrad_jax.amsgrad(SCHEDULE, storage=storage)
    abstract = jax.eval_shape(optimizer.init, PARAMS)
    got = interop.set_moments(abstract, _moments(PARAMS))
    arrays = optimizer.init(PARAMS)
    for state in (arrays, (arrays[0], *abstract[1:]), (abstract[0], *arrays[1:])):
        _same(got, interop.set_moments(state, _moments(PARAMS)))
    with_more = optax.chain(optax.trace(0.9), optimizer)
    with pytest.raises(ValueError, match="state has shapes .*, and has '0/trace/count' beside"):
        interop.set_moments(jax.eval_shape(with_more.init, PARAMS), _moments(PARAMS))


@pytest.mark.parametrize(("dtype", "other"), [("float32", "float64"), ("float64", "float32")])
def test_into_shapes_of_another_dtype(dtype, other):
    cast = lambda tree, to: jax.tree.map(lambda leaf: jnp.asarray(leaf, to), tree)
    with enable_x64():
        abstract = jax.eval_shape(amsgrad_jax.amsgrad(0.1).init, cast(PARAMS, dtype))
        count, *moments = _moments(PARAMS)
        numbers = amsgrad_jax.ScaleByAmsgradState(jnp.int32(count), *cast(moments, other))
        got = interop.set_moments(abstract, numbers)
        assert jax.eval_shape(lambda: got) == abstract


def test_set_moments_keeps_the_devices():
    device = jax.devices()[1]
    params = jax.device_put({"w": jnp.ones(2)}, device)
    for storage in ("full", "packed"):
        optimizer = amsgrad_jax.amsgrad(0.1, storage=storage)
        state = interop.set_moments(optimizer.init(params), _moments({"w": np.ones(2)}))
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(state[0][1:]))


# Several runs in one state.


def _ensemble(optimizer, steps=3):
    params = {"kernel": jnp.arange(12.0).reshape(2, 2, 3) + 1, "bias": jnp.ones((2, 3))}
    state = jax.vmap(optimizer.init)(params)
    for _ in range(steps):
        _, state = jax.vmap(optimizer.update)(params, state)
    return params, state


def _run(tree, number):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[number]), tree)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_several_runs(storage):
    optimizer = amsgrad_jax.amsgrad(SCHEDULE, storage=storage)
    params, state = _ensemble(optimizer)
    one = _run(params, 0)
    how = r"several runs: its count has shape \(2,\), expected \(\).*jax.vmap"
    with pytest.raises(ValueError, match=how):
        interop.get_moments(state, params)
    moments = jax.vmap(interop.get_moments)(state, params)
    for target in (optimizer.init(one), optimizer.init(params), state):
        with pytest.raises(ValueError, match=how):
            interop.set_moments(target, moments)
    with pytest.raises(ValueError, match=how):
        interop.set_moments(state, optimizer.init(params)[0])
    back = jax.vmap(interop.set_moments)(jax.vmap(optimizer.init)(params), moments)
    _same(back, state)
    under_jit = jax.jit(jax.vmap(interop.set_moments))(jax.vmap(optimizer.init)(params), moments)
    _same(under_jit, state)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_several_runs_change_their_convention(storage):
    """Each with its own count; the leading axis of one leaf is as long as its last."""
    optimizer = amsgrad_jax.amsgrad(0.1, b2=0.9, convention="optax", storage=storage)
    params = {"square": jnp.arange(4.0).reshape(2, 2) + 1, "scalar": jnp.ones(2)}
    runs = []
    for run in range(2):
        one = _run(params, run)
        state = optimizer.init(one)
        for _ in range(1 + 5 * run):
            _, state = optimizer.update(one, state)
        runs.append(state)
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *runs)
    how = dict(b2=0.9, from_convention="optax", to_convention="pytorch")
    got = amsgrad_jax.convert_convention(stacked, **how)
    for run, state in enumerate(runs):
        expected = amsgrad_jax.convert_convention(state, **how)
        _same(_run(got, run), expected)
    wrong = stacked[0]._replace(count=jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"count has shape \(3,\), which the moments at"):
        amsgrad_jax.convert_convention(wrong, **how)


def test_several_runs_from_and_to_optax():
    params, state = _ensemble(optax.amsgrad(0.1))
    with pytest.raises(ValueError, match="several runs.*jax.vmap"):
        interop.from_optax(state, params)
    ours = jax.vmap(interop.from_optax)(state, params)
    one = interop.from_optax(*_run((state, params), 1))
    _same(_run(ours, 1), one)
    target = jax.vmap(optax.amsgrad(0.1).init)(params)
    with pytest.raises(ValueError, match="several runs.*jax.vmap"):
        interop.to_optax(ours, params, target)
    back = jax.vmap(interop.to_optax)(ours, params, target)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, state)


# Errors.

ADAM = optax.adam(0.1).init(PARAMS)
OURS = amsgrad_jax.amsgrad(0.1).init(PARAMS)
WITHOUT_BIAS = {**PARAMS, "dense": {"kernel": PARAMS["dense"]["kernel"]}}
OTHER_SHAPE = {**PARAMS, "dense": {**PARAMS["dense"], "bias": jnp.ones(4)}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interop.get_moments((), PARAMS), "found none of these in tuple"),
        (
            lambda: interop.get_moments(
                amsgrad_jax.amsgrad(0.1).init({"w": jnp.ones(2, jnp.complex64)}),
                {"w": jnp.ones(2)},
            ),
            "'w' is complex, the parameter is real",
        ),
        (
            lambda: interop.from_optax((ADAM, optax.amsgrad(0.1).init(PARAMS)), PARAMS),
            "must contain one kind, found optax.ScaleByAdamState, optax.ScaleByAmsgradState",
        ),
        (lambda: interop.from_optax(ADAM, PARAMS), "no maximum: pass without_max='use_nu'"),
        (lambda: interop.from_optax(OURS, PARAMS), "found amsgrad_jax.ScaleByAmsgradState"),
        (lambda: interop.get_moments(ADAM, PARAMS), "found optax.*interop.from_optax"),
        (lambda: interop.get_moments((OURS, OURS), PARAMS), "several mu for 'count'"),
        (lambda: interop.set_moments((OURS, OURS), _moments(PARAMS)), "several mu for 'count'"),
        (
            lambda: interop.get_moments(
                (OURS, interop.set_moments(OURS, _moments(PARAMS))), PARAMS
            ),
            r"different counts \[0, 7\]",
        ),
        (lambda: interop.get_moments(OURS, WITHOUT_BIAS), "mu .* 'dense/bias' is no parameter"),
        (lambda: interop.get_moments(OURS, {**PARAMS, "x": jnp.ones(1)}), "the parameter 'x'"),
        (
            lambda: interop.get_moments(OURS, {**PARAMS, "activation": jnp.tanh}),
            "params must have arrays .* at 'activation': leave out what is not trained",
        ),
        (
            lambda: interop.get_moments(OURS, OTHER_SHAPE),
            r"'dense/bias' has shape \(3,\), the parameter has shape \(4,\)",
        ),
        (
            lambda: interop.set_moments(optax.sgd(0.1).init(PARAMS), _moments(PARAMS)),
            "found none of",
        ),
        (
            lambda: interop.set_moments(optax.amsgrad(0.1).init(PARAMS), _moments(PARAMS)),
            "state must contain .*found optax.ScaleByAmsgradState; .*from_optax",
        ),
        (lambda: interop.set_moments(OURS, _moments(WITHOUT_BIAS)), "nothing for .* 'dense/bias'"),
        (lambda: interop.set_moments(OURS, _moments(OTHER_SHAPE)), r"'dense/bias' has shape \(4,"),
        (
            lambda: interop.set_moments(
                OURS, jax.tree.map(lambda x: jnp.asarray(x, "complex64"), _moments(PARAMS))
            ),
            "complex|cast",
        ),
        (lambda: _names.by_name({"a/b": 1, "a": {"b": 2}}), "two leaves have the name 'a/b'"),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (3.7, TypeError, r"moments\.count must be an integer, got 3\.7"),
        (-1, ValueError, r"moments\.count must not be negative, got -1"),
    ],
)
def test_a_count_that_no_run_has(count, error, message):
    with pytest.raises(error, match=message):
        interop.set_moments(OURS, _moments(PARAMS)._replace(count=count))


def test_moments_must_be_a_state():
    with pytest.raises(TypeError, match="moments must be a ScaleByAmsgradState .*, got tuple"):
        interop.set_moments(OURS, OURS)
