"""Runs that change between Optax's ``amsgrad`` or ``adam`` and ours, with their state."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import interop
from tests import reference
from tests.parity import sequences
from tests.parity.comparisons import OPTAX_PAPER
from tests.parity.continuing import LR, MORE, after, assert_same, expected, go_on
from tests.variants import CONVENTIONS, enable_x64

SOME = {name: name in ("scalar", "matrix") for name in sequences.SHAPES}
OTHERS = {name: not some for name, some in SOME.items()}
SCHEDULE = optax.exponential_decay(LR, 10, 0.9)

WRAPPERS = {
    "alone": lambda amsgrad: amsgrad(LR),
    "masked": lambda amsgrad: optax.chain(
        optax.masked(amsgrad(LR), SOME), optax.masked(amsgrad(2 * LR), OTHERS)
    ),
    "partition": lambda amsgrad: optax.partition({True: amsgrad(LR), False: amsgrad(2 * LR)}, SOME),
    "inject_hyperparams": lambda amsgrad: optax.inject_hyperparams(amsgrad)(learning_rate=SCHEDULE),
    "MultiSteps": lambda amsgrad: optax.MultiSteps(
        amsgrad(SCHEDULE), every_k_schedule=lambda step: jnp.where(step < 20, 1, 2)
    ).gradient_transformation(),
}
# Functions with a signature, for inject_hyperparams.
THEIRS = lambda learning_rate: optax.amsgrad(learning_rate)
OURS = lambda learning_rate: amsgrad_jax.amsgrad(learning_rate, convention="optax")
PAIRS = {name: (wrap(THEIRS), wrap(OURS)) for name, wrap in WRAPPERS.items()}
# The accumulation starts anew after any of these numbers of steps.
STARTS = [("alone", k) for k in (0, 1, 7, 300)] + [(name, 20) for name in PAIRS if name != "alone"]


@pytest.fixture(autouse=True)
def _double():
    with enable_x64(True):
        yield


@pytest.mark.parametrize(("wrapper", "k"), STARTS)
def test_from_amsgrad(wrapper, k):
    theirs, ours = PAIRS[wrapper]
    params, state = after(theirs, k)
    taken = interop.from_optax(state, params, convention="optax")
    assert int(taken.count) == k
    new_state = interop.set_moments(ours.init(params), taken)
    assert_same(go_on(ours, params, new_state, k), expected(theirs, k))


@pytest.mark.parametrize(("wrapper", "k"), STARTS)
def test_to_amsgrad(wrapper, k):
    theirs, ours = PAIRS[wrapper]
    params, state = after(ours, k)
    new_state = interop.to_optax(state, params, theirs.init(params), convention="optax")
    assert_same(go_on(theirs, params, new_state, k), expected(ours, k))


@pytest.mark.parametrize("convention", ["pytorch", "optax"])
def test_from_adam(convention):
    k, b2 = 7, 0.999
    params, state = after(optax.adam(LR), k)
    taken = interop.from_optax(state, params, convention=convention, without_max="use_nu")
    assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal(taken[:3], state[0][:3])
    if convention == "pytorch":
        assert_equal(taken.nu_max, state[0].nu)

    optimizer = amsgrad_jax.amsgrad(LR, convention=convention)
    new_state = interop.set_moments(optimizer.init(params), taken)
    got = go_on(optimizer, params, new_state, k)

    right = {name: [] for name in params}
    for name, theta in params.items():
        m, v = np.asarray(state[0].mu[name]), np.asarray(state[0].nu[name])
        # The convention of optax holds corrected moments: of step 8, the next one.
        moments = reference.Moments(m, v, v / (1 - b2**8) if convention == "optax" else v)
        for t, g in enumerate(sequences.gradients()[name][k : k + MORE], start=k + 1):
            u, moments = reference.step(convention, g, moments, t, 0.9, b2, 1e-8)
            theta = theta - LR * u
            right[name].append(theta)
    assert_same(got, right)


def test_to_adam_and_back_drops_the_maximum_only():
    params, state = after(optax.adam(LR), 300)
    taken = interop.from_optax(state, params, without_max="use_nu")
    back = interop.to_optax(taken, params, optax.adam(LR).init(params))
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.skipif(not OPTAX_PAPER, reason="this Optax cannot leave out its bias corrections")
def test_from_and_to_the_maximum_of_raw_moments():
    theirs = optax.chain(
        optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False), optax.scale(-LR)
    )
    ours = amsgrad_jax.amsgrad(LR, convention="paper")
    params, state = after(theirs, 7)
    taken = interop.from_optax(state, params, convention="paper", bias_correction_nu=False)
    assert_same(
        go_on(ours, params, interop.set_moments(ours.init(params), taken), 7), expected(theirs, 7)
    )
    back = interop.to_optax(
        taken, params, theirs.init(params), convention="paper", bias_correction_nu=False
    )
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize("power", [-10, 10])  # the maximum holds; the new moment is above it
@pytest.mark.parametrize("k", [1, 7, 300])
@pytest.mark.parametrize(("source", "target"), [("optax", "pytorch"), ("pytorch", "optax")])
def test_convert_keeps_the_next_step(source, target, k, power):
    old, new = (amsgrad_jax.scale_by_amsgrad(convention=name) for name in (source, target))
    params, state = after(old, k)
    # In all places where there is a history, larger or smaller than all of it.
    largest = {name: np.abs(array[:k]).max(0) for name, array in sequences.gradients().items()}
    gradient = {name: array * 2.0**power for name, array in largest.items()}
    right, right_state = old.update(gradient, state)
    converted = amsgrad_jax.convert_convention(state, from_convention=source, to_convention=target)
    got, got_state = new.update(gradient, converted)
    for name in params:
        np.testing.assert_allclose(got[name], right[name], rtol=1e-12)
        for before, then in ((converted, got_state), (state, right_state)):
            grows = np.asarray(then.nu_max[name] > before.nu_max[name])[largest[name] > 0]
            assert grows.all() if power > 0 else not grows.any()


@pytest.mark.parametrize("b2", [0.0, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("k", [0, 1, 300])
def test_convert_there_and_back(b2, k):
    mine = amsgrad_jax.Convention(correct_mu=False, correct_nu="before_max")
    optimizer = amsgrad_jax.amsgrad(LR, b2=0.99)
    _, state = after(optimizer, k)
    there = amsgrad_jax.convert_convention(state, b2, from_convention="keras", to_convention=mine)
    back = amsgrad_jax.convert_convention(there, b2, from_convention="optax", to_convention="paper")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-15), back, state)
    factor = 1 - b2 ** (k + 1)
    for name in SOME:
        np.testing.assert_allclose(
            there[0].nu_max[name] * factor, state[0].nu_max[name], rtol=1e-9 if b2 else 1e-15
        )


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_convert_leaves_the_same_maximum_alone(source, target):
    _, state = after(amsgrad_jax.amsgrad(LR), 7)
    got = amsgrad_jax.convert_convention(state, from_convention=source, to_convention=target)
    same = jax.tree.map(np.array_equal, got[0].nu_max, state[0].nu_max)
    assert all(same.values()) == ((source == "optax") == (target == "optax"))


def test_convert_of_packed_moments():
    params = {"w": jnp.ones(3)}
    optimizer = amsgrad_jax.scale_by_amsgrad(convention="optax", storage="packed")
    state = optimizer.init(params)
    for gradient in (1.0, -20.0, 300.0):
        _, state = optimizer.update({"w": jnp.array([1.0, 2.0, 4.0]) * gradient}, state)
    there = amsgrad_jax.convert_convention(state, from_convention="optax", to_convention="pytorch")
    chex.assert_trees_all_equal_shapes_and_dtypes(there, state)
    there, state = (amsgrad_jax.convert_storage(one, "full") for one in (there, state))
    want = np.asarray(state.nu_max["w"]) * (1 - 0.999**4)
    # Roots are rounded to 4 bits of mantissa; what is stored in units of them, to units of the
    # smaller ones, and nu is 1/32 of its maximum at most.
    np.testing.assert_allclose(np.sqrt(there.nu_max["w"]), np.sqrt(want), rtol=1 / 32)
    np.testing.assert_allclose(there.mu["w"], state.mu["w"], rtol=1 / 32)
    np.testing.assert_allclose(there.nu["w"], state.nu["w"], rtol=1e-2)


def test_complex():
    theirs, ours = optax.amsgrad(LR), amsgrad_jax.amsgrad(LR, convention="optax")
    params, gradient = jnp.array([1 + 2j, 3 - 1j]), jnp.array([1 - 1j, 2j])
    _, state = theirs.update(gradient, theirs.init(params))
    taken = interop.from_optax(state, params, convention="optax")
    right, _ = theirs.update(3 * gradient, state)
    got, _ = ours.update(3 * gradient, interop.set_moments(ours.init(params), taken))
    assert taken.nu_max.dtype == "float64"
    np.testing.assert_allclose(got, right, rtol=1e-12)
    back = interop.to_optax(taken, params, theirs.init(params), convention="optax")
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_dtypes_are_those_of_the_library():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    theirs = optax.amsgrad(LR)
    _, state = theirs.update(params, theirs.init(params))
    taken = interop.from_optax(state, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(taken[1:])} == {"float32"}
    back = interop.to_optax(taken, params, theirs.init(params))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back[0][1:])} == {"bfloat16"}


def test_own_buffers():
    params, state = after(optax.adam(LR), 7)
    taken = interop.from_optax(state, params, without_max="use_nu")
    back = interop.to_optax(taken, params, state)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, taken, back))]
    assert len(set(pointers)) == len(pointers)


def test_accumulated_gradients_are_not_lost():
    optimizer = optax.MultiSteps(optax.amsgrad(LR), 3)
    ours = optax.MultiSteps(amsgrad_jax.amsgrad(LR, convention="optax"), 3)
    state, our_state, params = optimizer.init(PARAMS), ours.init(PARAMS), PARAMS
    for mini_step in (1, 2, 0):
        _, state = optimizer.update(params, state)
        _, our_state = ours.update(params, our_state)
        calls = (
            lambda: interop.from_optax(state, params, convention="optax"),  # noqa: B023
            lambda: interop.to_optax(our_state, params, state, convention="optax"),  # noqa: B023
        )
        for call, name in zip(calls, ("source", "state"), strict=True):
            if mini_step:
                with pytest.raises(ValueError, match=rf"^{name} has .*mini_step is {mini_step}\)"):
                    call()
            else:
                call()


def test_accumulated_gradients_are_found_behind_other_states():
    accumulated = optax.MultiSteps(optax.amsgrad(LR), 3).gradient_transformation()
    optimizer = optax.chain(optax.scale_by_schedule(lambda count: 1.0), accumulated)
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"^source has .*mini_step is 1\)"):
        interop.from_optax(state, PARAMS)


PARAMS = {"w": jnp.ones(3, "float32")}
OF_OPTAX = optax.amsgrad(LR).init(PARAMS)
OF_OURS = amsgrad_jax.amsgrad(LR).init(PARAMS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: interop.from_optax(OF_OURS, PARAMS), ValueError, "found amsgrad_jax.ScaleByAms"),
        (lambda: interop.from_optax((), PARAMS), ValueError, "found none of these in tuple"),
        (lambda: interop.from_optax(OF_OPTAX, {}), ValueError, "'w' is no parameter"),
        (
            lambda: interop.from_optax(OF_OPTAX, {"w": jnp.ones(4)}),
            ValueError,
            r"'w' has shape \(3,\), the parameter has shape \(4,\)",
        ),
        (
            lambda: interop.from_optax(OF_OPTAX, PARAMS, convention="adam"),
            ValueError,
            "unknown convention 'adam'",
        ),
        (lambda: interop.from_optax(OF_OPTAX, PARAMS, b2=1.0), ValueError, r"b2 .* in \[0, 1\)"),
        (
            lambda: interop.from_optax(OF_OPTAX, PARAMS, bias_correction_nu=1),
            TypeError,
            "bias_correction_nu must be a bool",
        ),
        (
            lambda: interop.to_optax(OF_OPTAX, PARAMS, OF_OURS),
            ValueError,
            "^state must contain .*found optax.Scale.*from_optax converts",
        ),
        (
            lambda: interop.to_optax(OF_OURS, PARAMS, OF_OURS),
            ValueError,
            "^target must contain .*found amsgrad_jax.Sc.* is the first argument of to_optax",
        ),
        (
            lambda: interop.to_optax(OF_OURS, PARAMS, optax.amsgrad(LR)),
            ValueError,
            "^target must contain .*found none of these in GradientTransformation",
        ),
        (
            lambda: interop.to_optax(
                OF_OURS, PARAMS, optax.amsgrad(LR).init({**PARAMS, "b": jnp.ones(2)})
            ),
            ValueError,
            "nothing for the parameter 'b'",
        ),
        (lambda: interop.to_optax(OF_OURS, PARAMS, OF_OPTAX, b2=-1), ValueError, "b2 must be"),
        (
            lambda: amsgrad_jax.convert_convention(
                OF_OPTAX, from_convention="optax", to_convention="paper"
            ),
            ValueError,
            "found no amsgrad_jax.ScaleByAmsgradState .*only .*optax.ScaleByAmsgradState, tuple",
        ),
        (  # also where nothing would be converted
            lambda: amsgrad_jax.convert_convention(
                OF_OPTAX, from_convention="pytorch", to_convention="keras"
            ),
            ValueError,
            "found no amsgrad_jax.ScaleByAmsgradState .*only .*optax.ScaleByAmsgradState, tuple",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
