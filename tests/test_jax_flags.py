"""JAX's own checks find nothing where nothing is wrong: every variant under each of them."""

import contextlib
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import amsgrad_jax
from amsgrad_jax import convert_storage, diagnostics, projections, remedies, schedules
from tests.variants import VARIANTS, enable_x64

PARAMS = {
    "none": None,
    "empty": np.zeros((0, 3), np.float32),
    "s": np.float32(2),
    "w": np.float32([[1, -2, 0.5], [3, 0.25, -1]]),
}
# The second row of "w" and the first step of "s" have no gradient.
GRADIENTS = [
    {**PARAMS, "s": np.float32(s), "w": np.float32([[w, -w, 0], [0, 0, 0]])}
    for s, w in ((0, 1), (3, 0.5), (-1, 2))
]


def steps(optimizer, gradients=GRADIENTS):
    """Params and state after the steps."""

    def one(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params, gradients):
        return jax.lax.scan(one, (params, optimizer.init(params)), gradients)[0]

    # Stacked by NumPy: JAX would compile each operation for itself.
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    return run, jax.tree.map(jnp.asarray, (PARAMS, stacked))


def of_variant(variant):
    return lambda: steps(variant())


def without_eps(storage, nesterov):
    return lambda: steps(amsgrad_jax.amsgrad(0.1, eps=0.0, storage=storage, nesterov=nesterov))


def of_schedules():
    optimizer = amsgrad_jax.amsgrad(
        schedules.inverse_sqrt(0.1),
        b1=schedules.decaying_b1(0.9, 0.99),
        b2=schedules.running_mean_b2(),
        convention="paper",
    )
    return steps(optimizer)


def of_other_schedules():
    return steps(amsgrad_jax.amsgrad(schedules.inverse_sqrt(jnp.float32(0.1)), jnp.float32(0.9)))


def of_array_schedules():
    optimizer = amsgrad_jax.amsgrad(
        schedules.inverse_sqrt(jnp.float32(0.1)), b1=schedules.inverse_b1(jnp.float32(0.5))
    )
    return steps(optimizer)


def with_zero_decay_rates():
    return steps(amsgrad_jax.amsgrad(0.1, b1=jnp.zeros(()), b2=jnp.zeros(()), nesterov=True))


def of_bfloat16(link):
    def make():
        params = jnp.asarray([1, -2, 0, 4], jnp.bfloat16)
        if link:
            optimizer = optax.chain(amsgrad_jax.amsgrad(0.1), amsgrad_jax.stochastic_rounding())
        else:
            optimizer = amsgrad_jax.amsgrad(0.1, storage="packed")

        def run(params):
            state = optimizer.init(params)
            for count in range(3):
                updates, state = optimizer.update(params, state, params)
                if link:
                    params = (params.astype(jnp.float32) + updates).astype(jnp.bfloat16)
                else:
                    params = amsgrad_jax.stochastic_apply_updates(params, updates, count)
            return params

        return run, (params,)

    return make


def of_reports(storage, convention, learning_rate):
    def make():
        run, arguments = steps(amsgrad_jax.amsgrad(0.1, storage=storage, convention=convention))

        def report(params, gradients):
            state = run(params, gradients)[1]
            arguments = dict(convention=convention, learning_rate=learning_rate)
            untouched = amsgrad_jax.amsgrad(0.1).init(params)
            return [diagnostics.max_report(one, **arguments) for one in (state, untouched)]

        return report, arguments

    return make


def of_watch():
    return steps(diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2))


def of_conversions():
    run, arguments = steps(amsgrad_jax.amsgrad(0.1))

    def convert(params, gradients):
        before = amsgrad_jax.amsgrad(0.1).init(params)
        after = run(params, gradients)[1]
        packed = [convert_storage(state, "packed") for state in (before, after)]
        return packed, [convert_storage(state, "full") for state in packed]

    return convert, arguments


def of_resets(storage):
    def make():
        optimizer = amsgrad_jax.amsgrad(0.1, storage=storage)
        run, arguments = steps(remedies.reset_max_when(optimizer, lambda count: count == 1))

        def reset(params, gradients):
            params, state = run(params, gradients)
            state = remedies.reset_max(state)
            return optimizer.update(
                jax.tree.map(lambda leaf: leaf[0], gradients), state.inner_state, params
            )

        return reset, arguments

    return make


STORAGES = ("full", "packed")
SETS = {
    "box": lambda: projections.box(-0.5, 0.5),
    "simplex": projections.simplex,
    "l2_ball": lambda: projections.l2_ball(1.0, center=0.25),
    "halfspace": lambda: projections.halfspace(1.0, 0.5),
}


def of_projections(make):
    return lambda: steps(projections.projected(amsgrad_jax.amsgrad(0.1), make()))


CASES = (
    {str(variant): of_variant(variant) for variant in VARIANTS}
    | {f"eps=0, {storage}": without_eps(storage, storage == "full") for storage in STORAGES}
    | {
        "schedules": of_schedules,
        "arrays": of_other_schedules,
        "schedules of arrays": of_array_schedules,
        "decay rates of 0": with_zero_decay_rates,
        "stochastic_apply_updates": of_bfloat16(False),
        "stochastic_rounding": of_bfloat16(True),
        "watch": of_watch,
        "convert_storage": of_conversions,
    }
    | {
        f"max_report, {storage}, {convention}, {rate}": of_reports(storage, convention, rate)
        for storage, convention, rate in (
            ("full", "keras", np.float32(0.1)),
            ("packed", "optax", None),
        )
    }
    | {f"reset, {storage}": of_resets(storage) for storage in STORAGES}
    | {f"projections, {name}": of_projections(make) for name, make in SETS.items()}
)
every_case = pytest.mark.parametrize("case", CASES)


@contextlib.contextmanager
def all_of(*managers):
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


@pytest.fixture(scope="module")
def old_objects():
    """Where they are put away, the search for leaks is three times as fast."""
    yield gc.freeze
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@every_case
def test_compiled(case, old_objects):
    """All that do not disturb each other at once, so that a program is compiled once for them."""
    old_objects()
    with all_of(
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.checking_leaks(),
        jax.debug_nans(True),
        jax.debug_infs(True),
    ):
        run, arguments = CASES[case]()
        checked = checkify.checkify(run, errors=checkify.all_checks)
        error, got = jax.jit(checked)(*arguments)
        error.throw()
    assert all(np.all(np.isfinite(leaf)) for leaf in map(as_numbers, jax.tree.leaves(got)))


def without_empty(tree):
    """Each operation on an empty array would be compiled, and has no number that could be bad."""
    is_empty = lambda leaf: np.size(leaf) == 0
    return jax.tree.map(lambda leaf: None if is_empty(leaf) else leaf, tree)


@every_case
def test_op_by_op(case):
    with all_of(jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit()):
        run, arguments = CASES[case]()
        got = run(*without_empty(arguments))
    assert all(np.all(np.isfinite(leaf)) for leaf in map(as_numbers, jax.tree.leaves(got)))


@every_case
def test_promotions_in_float64(case):
    with all_of(enable_x64(), jax.numpy_dtype_promotion("strict")):
        run, arguments = CASES[case]()
        jax.eval_shape(run, *arguments)  # promotion is a matter of tracing


def as_numbers(leaf):
    return np.asarray(leaf).astype(np.float64)
