"""States of chains by the paths of parameters: taken out, put in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import interop
from amsgrad_jax.interop import _trees

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
        optax.partition({True: optax.amsgrad(SCHEDULE), False: optax.amsgrad(SCHEDULE)}, MASK),
        2,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(amsgrad_jax.amsgrad)(SCHEDULE), 2),
    "MultiSteps": (
        optax.MultiSteps(optax.adam(SCHEDULE), every_k_schedule=2).gradient_transformation(),
        2,
    ),
    "apply_if_finite": (optax.apply_if_finite(amsgrad_jax.amsgrad(0.1), 3), 0),
}


def _moments(params, count=7):
    """Moments that differ in every element and from each other."""
    paths = sorted(_trees.by_path(params))

    def tree(offset):
        leaves = {
            path: offset
            + 10 * paths.index(path)
            + np.arange(float(np.size(leaf))).reshape(np.shape(leaf))
            for path, leaf in _trees.by_path(params).items()
        }
        return _trees.like(params, leaves)

    return amsgrad_jax.ScaleByAmsgradState(jnp.array(count), tree(100), tree(200), tree(300))


def _same(got, right):
    assert jax.tree.structure(got) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, got, right)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_put_then_take(name):
    optimizer, other_counts = OPTIMIZERS[name]
    before = optimizer.init(PARAMS)
    moments = _moments(PARAMS)
    state = interop.put(before, moments)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert dtypes(state) == dtypes(before)

    count, mu, nu, nu_max = interop.take(state, PARAMS)
    assert int(count) == 7
    _same(mu, moments.mu)
    _same(nu, moments.nu)
    assert nu_max is None if name == "MultiSteps" else True
    if nu_max is not None:
        _same(nu_max, moments.nu_max)

    sevens = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == "int32" and leaf == 7]
    assert len(sevens) == len(_trees.nodes(state)) + other_counts
    # What is no moment and no step count is as it was.
    changed = sum(
        not np.array_equal(*pair)
        for pair in zip(*map(jax.tree.leaves, (state, before)), strict=True)
    )
    fields = 2 if name == "MultiSteps" else 3
    assert changed == fields * len(jax.tree.leaves(PARAMS)) + len(sevens)


def test_goes_on_as_if_never_moved():
    optimizer = amsgrad_jax.amsgrad(SCHEDULE)
    params = {"count": jnp.ones(3)}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state)
    taken = amsgrad_jax.ScaleByAmsgradState(*interop.take(state, params))
    _same(interop.put(optimizer.init(params), taken), state)


def test_an_integer_called_count_is_left_alone():
    params = {"count": jnp.int32(2), "w": jnp.ones(3)}
    optimizer = optax.chain(
        optax.trace(0.9),  # has an integer for each integer parameter
        optax.masked(amsgrad_jax.amsgrad(0.1), {"count": False, "w": True}),
    )
    trace, _ = interop.put(optimizer.init(params), _moments({"w": np.ones(3)}))
    assert int(trace.trace["count"]) == 0


def test_put_shares_no_array():
    moments = jax.tree.map(jnp.asarray, _moments(PARAMS))
    moments = jax.tree.map(lambda x: x.astype("float32"), moments)
    state = interop.put(amsgrad_jax.scale_by_amsgrad().init(PARAMS), moments)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((moments, state))]
    assert len(set(pointers)) == len(pointers)


def test_put_leaves_other_counts_alone():
    """The one of reduce_on_plateau is of steps in the present average of losses."""
    optimizer = optax.chain(amsgrad_jax.amsgrad(0.1), optax.contrib.reduce_on_plateau())
    ours, plateau = interop.put(optimizer.init(PARAMS), _moments(PARAMS))
    assert int(ours[0].count) == 7
    assert int(plateau.count) == 0


def test_put_keeps_the_devices():
    device = jax.devices()[1]
    params = jax.device_put({"w": jnp.ones(2)}, device)
    state = interop.put(amsgrad_jax.amsgrad(0.1).init(params), _moments({"w": np.ones(2)}))
    assert state[0].mu["w"].devices() == {device}


ADAM = optax.adam(0.1).init(PARAMS)
OURS = amsgrad_jax.amsgrad(0.1).init(PARAMS)
WITHOUT_BIAS = {**PARAMS, "dense": {"kernel": PARAMS["dense"]["kernel"]}}
OTHER_SHAPE = {**PARAMS, "dense": {**PARAMS["dense"], "bias": jnp.ones(4)}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interop.take((), PARAMS), "found none of these in tuple"),
        (
            lambda: interop.take((OURS, ADAM), PARAMS),
            "found amsgrad_jax.ScaleByAmsgradState, optax.ScaleByAdamState",
        ),
        (lambda: interop.take((OURS, OURS), PARAMS), "several mu for 'count'"),
        (
            lambda: interop.take((OURS, interop.put(OURS, _moments(PARAMS))), PARAMS),
            r"different counts \[0, 7\]",
        ),
        (lambda: interop.take(OURS, WITHOUT_BIAS), "mu .* 'dense/bias' is no parameter"),
        (lambda: interop.take(OURS, {**PARAMS, "x": jnp.ones(1)}), "the parameter 'x'"),
        (
            lambda: interop.take(OURS, OTHER_SHAPE),
            r"'dense/bias' has shape \(3,\), the parameter has shape \(4,\)",
        ),
        (lambda: interop.put(optax.sgd(0.1).init(PARAMS), _moments(PARAMS)), "found none of"),
        (lambda: interop.put((OURS, ADAM), _moments(PARAMS)), "found amsgrad_jax.*, optax"),
        (lambda: interop.put(OURS, _moments(WITHOUT_BIAS)), "nothing for .* 'dense/bias'"),
        (lambda: interop.put(OURS, _moments(OTHER_SHAPE)), r"'dense/bias' has shape \(4,\)"),
        (lambda: _trees.by_path({"a/b": 1, "a": {"b": 2}}), "two leaves have the path 'a/b'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
