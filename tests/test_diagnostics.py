"""The report says what numpy says of the same state, wherever and however it is held."""

import copy
import functools
import json
import pathlib
import pickle
import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.backends.backend_agg import FigureCanvasAgg

import amsgrad_jax
from amsgrad_jax import diagnostics, remedies
from benchmarks import spike
from tests.variants import CONVENTIONS, enable_x64

SHAPES = {"dense": {"kernel": (30, 20), "bias": (20,)}, "scale": ()}
is_shape = lambda node: isinstance(node, tuple)


def state_of(nu, nu_max, mu=None, count=1000):
    """A state with these moments, given as numpy arrays in any tree."""
    nu, nu_max = (jax.tree.map(jnp.asarray, tree) for tree in (nu, nu_max))
    mu = jax.tree.map(jnp.ones_like, nu) if mu is None else jax.tree.map(jnp.asarray, mu)
    return amsgrad_jax.ScaleByAmsgradState(jnp.int32(count), mu, nu, nu_max)


def random_state(seed, shapes=SHAPES, storage="full", **kwargs):
    """Slowdowns from 1 to 1000; a fifth of the coordinates have them exactly 1."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: jax.tree.map(
        lambda shape: 10 ** rng.uniform(low, high, shape).astype(np.float32),
        shapes,
        is_leaf=is_shape,
    )
    nu = draw(-8, -2)
    nu_max = jax.tree.map(lambda v, r: v * np.maximum(r / 10**1.5, 1), nu, draw(0, 7.5))
    return amsgrad_jax.convert_storage(state_of(nu, nu_max, **kwargs), storage)


def gradients_after(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        _, state = optimizer.update(gradient, state, params)
    return state


def by_leaf(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# The numbers.


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0, 100.0]))
def test_report_is_what_numpy_says(seed, frozen):
    state = random_state(seed)
    report = diagnostics.max_report(state, frozen=frozen, quantiles=(0.1, 0.5, 0.9, 1.0))
    nu, nu_max = by_leaf(state.nu), by_leaf(state.nu_max)
    assert len(report) == 3 * (4 + 4 + 1)
    for name, v in nu.items():
        slowdown = np.sqrt(nu_max[name] / v)
        share = lambda what: pytest.approx(what.mean(), abs=1e-6)
        assert report[f"{name}/binding"] == share(nu_max[name] > 1.01 * v)
        assert report[f"{name}/frozen"] == share(slowdown >= frozen)
        assert report[f"{name}/untouched"] == report[f"{name}/nonfinite"] == 0
        np.testing.assert_allclose(report[f"{name}/slowdown_max"], slowdown.max(), rtol=1e-6)
        for q in (0.1, 0.5, 0.9, 1.0):
            exact = np.quantile(slowdown, q, method="inverted_cdf")
            got = report[f"{name}/slowdown_q{100 * q:g}"]
            assert exact / (1 + 2**-5) <= got <= exact * (1 + 1e-6)


def test_groups_and_tree_count_leaves_by_size():
    state = random_state(1)
    both = np.concatenate(
        [
            np.ravel(np.sqrt(by_leaf(state.nu_max)[name] / by_leaf(state.nu)[name]))
            for name in ("dense/bias", "dense/kernel")
        ]
    )
    grouped = diagnostics.max_report(state, per=lambda path: path.split("/")[0])
    assert {key.split("/")[0] for key in grouped} == {"dense", "scale"}
    assert grouped["dense/frozen"] == pytest.approx((both >= 100).mean())
    exact = np.quantile(both, 0.9, method="inverted_cdf")
    assert exact / (1 + 2**-5) <= grouped["dense/slowdown_q90"] <= exact * (1 + 1e-6)
    tree = diagnostics.max_report(state, per="tree")
    assert set(tree) == {
        *("binding", "frozen", "nonfinite", "untouched"),
        *("slowdown_q50", "slowdown_q90", "slowdown_max"),
    }
    assert tree["slowdown_max"] == max(grouped["dense/slowdown_max"], grouped["scale/slowdown_max"])


def test_quantiles_of_a_large_leaf_come_from_a_fair_sample():
    rows = np.geomspace(1, 1e4, 1024, dtype=np.float32)  # depends on the row only, then the column
    for ratio in (np.tile(rows[:, None], 512), np.tile(rows, (512, 1))):
        report = diagnostics.max_report(state_of(np.ones_like(ratio), ratio), quantiles=(0.3, 0.9))
        for q in (0.3, 0.9):
            rank = np.mean(np.sqrt(ratio) <= report[f"slowdown_q{100 * q:g}"])
            assert abs(rank - q) < 0.015  # a bin is 0.7 % of the coordinates here
        assert report["frozen"] == pytest.approx(np.mean(np.sqrt(ratio) >= 100), abs=1e-6)


def of_slowdowns(*leaves):
    """A state with these slowdowns, whose squares float32 holds exactly."""
    ratio = [np.float32(slowdown) ** 2 for slowdown in leaves]
    return state_of([np.ones_like(leaf) for leaf in ratio], ratio)


# Lower ends of the bins from 1 to 2**60, where a quantile is what it is: exact to the rank.
ENDS = np.ravel((1 + np.arange(32) / 32) * 2.0 ** np.arange(60)[:, None])


@pytest.mark.parametrize("number", [10, 100, 700, 1900])
def test_quantiles_have_the_rank_that_integers_give(number):
    chosen = np.random.default_rng(number).permutation(ENDS)[:number]
    hundredths = range(10, 101, 10) if number == 10 else range(1, 101)
    report = diagnostics.max_report(
        of_slowdowns(chosen), quantiles=[k / 100 for k in hundredths], per="tree"
    )
    for k in hundredths:
        rank = -(-k * number // 100)  # of k number / 100, rounded up
        assert report[f"slowdown_q{k}"] == np.sort(chosen)[rank - 1]


@pytest.mark.parametrize("size", [16_382, 20_000, 100_003, 1_000_000])
def test_the_last_quantile_is_the_largest_and_no_more(size):
    """One coordinate in 100 has the largest slowdown, and so some in the sample do."""
    slowdowns = 2.0 ** np.random.default_rng(size).integers(0, 5, size)
    slowdowns[::101] = 64
    report = diagnostics.max_report(
        of_slowdowns(slowdowns),
        quantiles=(0.999, 1.0),
        learning_rate=1.0,
        eps=0.0,
        convention="paper",
    )
    assert report["0/slowdown_q100"] == report["0/slowdown_max"] == slowdowns.max()
    assert report["0/slowdown_q99.9"] == 64
    assert report["0/step_size_q100"] == 1 / slowdowns.min()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_quantile_of_a_group_exceeds_its_largest_slowdown(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 30, 16_381, 16_400, 50_000], 4)
    leaves = [10 ** rng.exponential(1, size).clip(0, 15) for size in sizes]
    state = of_slowdowns(*leaves)
    report = diagnostics.max_report(state, per="tree", quantiles=(0.9999999, 1.0))
    assert report["slowdown_q99.99999"] <= report["slowdown_q100"] <= report["slowdown_max"]
    np.testing.assert_allclose(report["slowdown_max"], max(map(np.max, leaves)), rtol=1e-6)


def test_leaves_of_which_a_sample_is_counted_count_by_their_size():
    """50,000 coordinates of slowdown 2, 500 of 8: they part at 0.990099, not at 0.97."""
    state = of_slowdowns(np.full(500, 8.0), np.full(50_000, 2.0))
    report = diagnostics.max_report(state, per="tree", quantiles=(0.98, 0.9900, 0.9902, 1.0))
    got = [report[f"slowdown_q{q}"] for q in (98, 99, 99.02, 100)]
    assert got == [2, 2, 8, 8]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_step_size_is_how_far_a_corrected_moment_moves(convention):
    """The update of a transformation, over its (corrected) first moment."""
    settings = dict(b2=0.9, eps=0.1, eps_root=0.01, convention=convention)
    optimizer = amsgrad_jax.scale_by_amsgrad(b1=0.5, **settings)
    gradients = np.float32([[1, 2, 3], [-0.7, 7, 0.1], [0.2, 0.3, 0.1], [0.1, 0.1, 0.1]])
    state = optimizer.init(gradients[0])
    for t, gradient in enumerate(gradients, start=1):
        update, state = optimizer.update(jnp.asarray(gradient), state)
        corrected = state.mu if convention == "paper" else state.mu / (1 - 0.5**t)
        steps = np.sort(0.25 / t * np.asarray(update / corrected))
        report = diagnostics.max_report(
            state,
            learning_rate=lambda count: 0.25 / (count + 1),
            quantiles=(0.3, 0.6, 1),
            **settings,
        )
        got = np.array([report[f"step_size_q{q}"] for q in (30, 60, 100)])
        assert np.all(got <= steps * (1 + 1e-5))
        assert np.all(got >= steps / (1 + 2**-5))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nothing_binds_while_gradients_grow(convention):
    """Then the maximum is always the present second moment, in its convention's sense."""
    optimizer = amsgrad_jax.amsgrad(0.1, convention=convention)
    gradients = [jnp.full(100, 1.5**t) * jnp.linspace(0.1, 10, 100) for t in range(20)]
    state = gradients_after(optimizer, gradients[0], gradients)
    report = diagnostics.max_report(state, convention=convention, quantiles=(1.0,))
    assert report["binding"] == 0
    assert report["slowdown_max"] == pytest.approx(1, abs=1e-6)
    small = [*gradients, *10 * [jnp.full(100, 1e-6)]]
    state = gradients_after(optimizer, gradients[0], small)
    assert diagnostics.max_report(state, convention=convention)["binding"] > 0.99


def test_optax_convention_compares_with_the_corrected_moment():
    state = gradients_after(
        amsgrad_jax.amsgrad(0.1, convention="optax"), jnp.ones(3), [jnp.ones(3)]
    )
    assert diagnostics.max_report(state, convention="optax")["slowdown_max"] == pytest.approx(1)
    unsaid = diagnostics.max_report(state)["slowdown_max"]
    assert unsaid == pytest.approx(np.sqrt(1000), rel=1e-4)  # 1 / (1 - 0.999)


def test_untouched_and_nonfinite_stand_apart():
    zero, nan, inf = 0.0, np.nan, np.inf
    mu = np.float32([1, 1, 0, 1, 1, nan, 1])
    nu = np.float32([1, 1, 0, inf, nan, 1, 0])
    nu_max = np.float32([1, 4, 0, inf, 1, 1, 9])
    report = diagnostics.max_report(state_of(nu, nu_max, mu), quantiles=(0.3, 0.6), learning_rate=1)
    assert report["untouched"] == pytest.approx(1 / 7)
    assert report["nonfinite"] == pytest.approx(3 / 7)
    assert report["binding"] == pytest.approx(2 / 7)  # slowdowns are 1, 2 and infinite
    assert report["frozen"] == pytest.approx(1 / 7)
    assert (report["slowdown_q30"], report["slowdown_q60"]) == (1, 2)
    assert report["slowdown_max"] == inf
    fresh = diagnostics.max_report(
        state_of(np.zeros(3), np.zeros(3), np.zeros(3), count=0), learning_rate=1
    )
    assert fresh.pop("untouched") == 1
    assert all(value == zero for value in fresh.values())


# However the state is stored.


def test_states_of_several_runs_are_reported_one_by_one():
    optimizer = amsgrad_jax.amsgrad(0.1, b2=0.9)
    params = jnp.arange(1.0, 7.0).reshape(2, 3)
    state = jax.vmap(optimizer.init)(params)
    _, state = jax.vmap(optimizer.update)(params, state)
    with pytest.raises(ValueError, match=r"count has shape \(2,\), .* jax.vmap"):
        diagnostics.max_report(state, learning_rate=0.1)
    both = jax.vmap(functools.partial(diagnostics.max_report, learning_rate=0.1, b2=0.9))(state)
    one = diagnostics.max_report(
        jax.tree.map(lambda leaf: leaf[1], state), learning_rate=0.1, b2=0.9
    )
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], both), one)


def test_packed_moments_differ_by_what_their_words_round():
    full = random_state(3, {"w": (100, 100)})
    packed = amsgrad_jax.convert_storage(full, "packed")
    ratio = np.asarray(full.nu_max["w"]) / np.asarray(full.nu["w"])
    report = diagnostics.max_report(packed, quantiles=(0.5, 0.9))
    for q in (0.5, 0.9):
        exact = np.sqrt(np.quantile(ratio, q, method="inverted_cdf"))
        # The root of nu_max is within 1/32; that of nu within 2/3 of 2**-10 of the root of its
        # maximum, hence s times as much of itself; and a bin of the histogram.
        of_nu = 2 / 3 * 2**-10 * exact * 32 / 31
        low, high = 31 / 32 / (1 + of_nu) / (1 + 2**-5), 33 / 32 / (1 - of_nu)
        assert low * exact <= report[f"w/slowdown_q{100 * q:g}"] <= high * exact
    assert np.mean(ratio > (33 / 31) ** 2 * 1.01) <= report["w/binding"] <= np.mean(ratio > 1.005)
    assert report["w/untouched"] == report["w/nonfinite"] == 0


def test_a_packed_slowdown_beyond_its_range_is_the_end_of_the_range():
    full = state_of(np.float32([1, 1, 0]), np.float32([1e10, 1, 0]), np.float32([1, 1, 0]))
    packed = amsgrad_jax.convert_storage(full, "packed")
    report = diagnostics.max_report(packed, frozen=1000)
    assert report["slowdown_max"] == 2048
    assert report["frozen"] == report["binding"] == report["untouched"] == pytest.approx(1 / 3)


def test_stochastic_rounding_is_not_taken_for_a_maximum_that_binds():
    optimizer = amsgrad_jax.amsgrad(0.1, b2=0.99, storage="packed")
    gradients = [jnp.linspace(1, 2, 5000) * 1.1**t for t in range(20)]
    state = gradients_after(optimizer, gradients[0], gradients)
    assert diagnostics.max_report(state)["binding"] == 0


def test_trees_of_every_kind():
    params = {
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "complex": jnp.ones(2, jnp.complex64),
        "half": jnp.ones(3, jnp.bfloat16),
        "scalar": jnp.ones(()),
    }
    for storage in ("full", "packed"):
        optimizer = amsgrad_jax.amsgrad(0.1, b2=0.9, storage=storage)
        names = {"complex", "half", "scalar"}
        if storage == "packed":
            del params["complex"]
            names -= {"complex"}
        gradients = [jax.tree.map(lambda p, k=k: k * p, params) for k in (8.0, 1.0, 1.0)]
        report = jax.jit(diagnostics.max_report)(gradients_after(optimizer, params, gradients))
        assert {key.split("/")[0] for key in report} == names
        assert {(value.shape, value.dtype, value.weak_type) for value in report.values()} == {
            ((), jnp.dtype("float32"), False)
        }
        for name in names:
            # nu is 6.4, 5.86, 5.374 times the square of the parameter, the maximum 6.4.
            assert report[f"{name}/slowdown_max"] == pytest.approx(np.sqrt(6.4 / 5.374), rel=0.08)
    assert diagnostics.max_report(amsgrad_jax.amsgrad(1).init({"none": None})) == {}


def test_double_precision():
    with enable_x64():
        state = state_of(np.array([1e-200, 1e-100]), np.array([1e-196, 1e-100]))
        report = diagnostics.max_report(state, learning_rate=1.0, eps=0.0)
        assert report["slowdown_max"] == pytest.approx(100)
        assert report["slowdown_q50"] == 1
        assert report["binding"] == 0.5
        assert {value.dtype for value in report.values()} == {jnp.dtype("float32")}


WRAPPINGS = {
    "chain": lambda inner: optax.chain(optax.clip(1.0), inner),
    "masked": lambda inner: optax.masked(inner, {"w": True, "b": True}),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "multi_steps": lambda inner: optax.MultiSteps(inner, 1).gradient_transformation(),
    "inject": lambda inner: optax.inject_hyperparams(amsgrad_jax.amsgrad)(learning_rate=1.0),
    "watch": lambda inner: diagnostics.watch(inner, 2),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_finds_the_state(wrapping):
    params = {"w": jnp.ones(4), "b": jnp.ones(())}
    gradients = [jax.tree.map(lambda p, k=k: k * p, params) for k in (0.9, 0.01)]
    want = diagnostics.max_report(gradients_after(amsgrad_jax.amsgrad(1.0), params, gradients))
    optimizer = WRAPPINGS[wrapping](amsgrad_jax.amsgrad(1.0))
    got = diagnostics.max_report(gradients_after(optimizer, params, gradients))
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    assert got["w/binding"] == 0 != got["w/slowdown_q50"]


def test_several_states_are_apart():
    inner = {"fast": amsgrad_jax.amsgrad(1.0), "slow": amsgrad_jax.amsgrad(0.1)}
    optimizer = optax.partition(inner, {"w": "fast", "b": "slow"})
    params = {"w": jnp.ones(4), "b": jnp.ones(3)}
    state = gradients_after(optimizer, params, [params, jax.tree.map(jnp.zeros_like, params)])
    report = diagnostics.max_report(state, per="tree")
    prefixes = {key.rpartition("/")[0] for key in report}
    assert len(prefixes) == 2
    assert all(any(name in prefix for prefix in prefixes) for name in ("fast", "slow"))
    assert any(key.endswith("/w/binding") for key in diagnostics.max_report(state))


def test_equinox_module():
    model = eqx.filter(eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    report = diagnostics.max_report(amsgrad_jax.amsgrad(1.0).init(model))
    assert report["layers/0/weight/untouched"] == 1


def test_jit_changes_nothing():
    state = random_state(7)
    report = functools.partial(diagnostics.max_report, learning_rate=0.1)
    chex.assert_trees_all_close(jax.jit(report)(state), report(state), rtol=1e-6)
    traced = jax.jit(lambda state, rate: diagnostics.max_report(state, learning_rate=rate))
    chex.assert_trees_all_close(traced(state, 0.1), report(state), rtol=1e-6)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_sharding_changes_nothing_and_gathers_nothing(storage):
    assert jax.device_count() == 8
    ratio = np.random.default_rng(0).uniform(1, 1000, (160, 240)).astype(np.float32)
    one = jnp.ones((160, 240))
    state = amsgrad_jax.ScaleByAmsgradState(jnp.int32(9), one, one, jnp.asarray(ratio))
    state = amsgrad_jax.convert_storage(state, storage)
    want = jax.jit(diagnostics.max_report)(state)
    meshes = [Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))]
    if hasattr(jax, "set_mesh"):
        explicit = (jax.sharding.AxisType.Explicit,) * 2
        meshes.append(jax.make_mesh((4, 2), ("a", "b"), axis_types=explicit))
    for mesh in meshes:
        for spec in (("a", "b"), (None, "b")) if storage == "full" else ((("a", "b"), None),):
            sharding = NamedSharding(mesh, P(*spec))
            split = jax.tree.map(
                lambda x, sharding=sharding: jax.device_put(x, sharding) if x.ndim else x, state
            )
            compiled = jax.jit(diagnostics.max_report).lower(split).compile()
            assert not any(
                "all-gather(" in line and "160,240" in line.split("=")[1]
                for line in compiled.as_text().splitlines()
            )
            for name, value in compiled(split).items():
                np.testing.assert_allclose(value, want[name], rtol=1e-6, err_msg=name)


# Watching.


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_watch_reports_every_few_steps_and_changes_no_update(storage):
    inner = amsgrad_jax.amsgrad(0.1, b2=0.9, storage=storage)
    watched = diagnostics.watch(inner, 3)
    params = {"w": jnp.arange(1.0, 5.0)}
    plain, state = inner.init(params), watched.init(params)
    step = jax.jit(watched.update)
    last = dict.fromkeys(diagnostics.max_report(plain), 0.0)
    for count in range(1, 8):
        gradients = jax.tree.map(lambda p, k=count: p / k, params)
        want, plain = jax.jit(inner.update)(gradients, plain, params)
        got, after = step(gradients, state, params)
        chex.assert_trees_all_equal(got, want)
        chex.assert_trees_all_equal(after.inner_state, plain)
        types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
        assert types(after) == types(state)
        if count % 3 == 0:
            last = jax.jit(diagnostics.max_report)(plain)
        chex.assert_trees_all_close(diagnostics.last_report(after), last, rtol=1e-6)
        state = after
    assert diagnostics.last_report(state)["w/slowdown_q50"] > 1
    chex.assert_trees_all_equal(jax.jit(diagnostics.last_report)(state), last)


def test_watch_goes_where_transformations_go():
    params = {"w": jnp.ones(4)}
    per_tree = functools.partial(diagnostics.max_report, per="tree")
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2, per_tree)
    for optimizer in (
        watched,
        optax.chain(optax.clip(1.0), watched),
        optax.MultiSteps(watched, 2).gradient_transformation(),
        optax.apply_if_finite(watched, 2),
        optax.masked(watched, {"w": True}),
        optax.partition({"fast": watched, "slow": optax.sgd(0.1)}, {"w": "fast"}),
        optax.inject_hyperparams(
            lambda learning_rate: diagnostics.watch(amsgrad_jax.amsgrad(learning_rate), 2, per_tree)
        )(learning_rate=0.1),
    ):

        def step(carry, scale, optimizer=optimizer):
            params, state = carry
            gradients = jax.tree.map(lambda p: scale * p, params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jnp.float32([1, 1, 0.1, 0.1, 0.01])
        )
        report = diagnostics.last_report(carry[1], per_tree)
        assert report["untouched"] == 0
        assert report["slowdown_max"] >= 1
    shapes = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(watched.init, shapes), watched.init(params)
    )


def test_watch_passes_extra_arguments():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e9)
    watched = diagnostics.watch(optax.chain(amsgrad_jax.amsgrad(0.1), plateau), 2)
    params = {"w": jnp.ones(4)}
    state = watched.init(params)
    for _ in range(5):
        _, state = jax.jit(watched.update)(params, state, params, value=jnp.float32(1))
    assert state.inner_state[-1].scale < 1


def test_watch_is_traced_once():
    made = []

    def report(state):
        made.append(None)
        return diagnostics.max_report(state)

    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2, report)
    params = {"w": jnp.ones(4)}
    state = jax.jit(watched.init)(params)
    step = jax.jit(watched.update)
    _, state = step(params, state)
    once = len(made)
    for _ in range(5):
        _, state = step(params, state)
    assert len(made) == once


def test_watch_copies_no_state():
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2)
    params = {"w": jnp.ones((1024, 1024))}
    state = jax.jit(watched.init)(params)
    step = jax.jit(lambda gradients, state: watched.update(gradients, state), donate_argnums=(0, 1))
    memory = step.lower(params, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < params["w"].nbytes / 8


def mean_nu(state):
    """A report of one's own, which needs the parameters there."""
    return {"nu": jnp.mean(optax.tree.get(state, "nu")["w"])}


@pytest.mark.parametrize("report", [diagnostics.max_report, mean_nu])
@pytest.mark.parametrize("steps", [0, 4])
def test_map_params_knows_the_parameters_in_a_watched_state(report, steps):
    watched = optax.chain(optax.clip(1.0), diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2, report))
    params = {"w": jnp.arange(1.0, 5.0), "none": None}
    state = gradients_after(watched, params, steps * [params])
    doubled = optax.tree.map_params(watched, lambda leaf: 2 * leaf, state)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf[0] * 2, optax.tree.get(doubled, "mu")),
        jax.tree.map(lambda leaf: leaf[0] * 4, optax.tree.get(state, "mu")),
    )
    want = diagnostics.last_report(state, report)
    chex.assert_trees_all_equal(diagnostics.last_report(doubled, report), want)
    assert steps == 0 or any(want.values())
    specs = optax.tree.map_params(
        watched, lambda _: "split", state, transform_non_params=lambda leaf: leaf.shape
    )
    assert optax.tree.get(specs, "figures") == (len(want),)
    assert optax.tree.get(specs, "mu") == {"w": "split", "none": None}


def test_watch_without_parameters_has_no_report():
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1), 1)
    _, state = watched.update({"none": None}, watched.init({"none": None}))
    assert diagnostics.last_report(state) == {}


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_watch_within_an_optimizer_of_nnx(storage):
    """There `init` sees every parameter in a Variable, and `update` sees it bare."""
    nnx = pytest.importorskip("flax.nnx")
    inner = amsgrad_jax.amsgrad(0.1, b2=0.9, storage=storage)

    class Model(nnx.Module):
        def __init__(self):
            self.inner = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
            self.outer = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

        def __call__(self, inputs):
            return self.outer(jnp.tanh(self.inner(inputs)))

    @nnx.jit
    def step(model, optimizer, inputs):
        loss = lambda model: jnp.sum(model(inputs) ** 2)
        optimizer.update(model, nnx.grad(loss)(model))

    models = Model(), Model()
    watched = nnx.Optimizer(models[0], diagnostics.watch(inner, 2), wrt=nnx.Param)
    plain = nnx.Optimizer(models[1], inner, wrt=nnx.Param)
    last = dict.fromkeys(diagnostics.max_report(plain.opt_state), 0.0)
    assert "inner/kernel/binding" in last
    for count in range(1, 6):
        inputs = jnp.full((5, 3), 1 / count)
        step(models[0], watched, inputs)
        step(models[1], plain, inputs)
        if count % 2 == 0:
            last = diagnostics.max_report(plain.opt_state)
        chex.assert_trees_all_close(diagnostics.last_report(watched.opt_state), last, rtol=1e-5)
    assert last["inner/kernel/slowdown_q90"] > 1
    # What flax makes of a state when it is taken apart, put together and copied.
    again = nnx.merge(*nnx.split(watched))
    for state in (again, again.opt_state, copy.deepcopy(again.opt_state)):
        chex.assert_trees_all_close(diagnostics.last_report(state), last, rtol=1e-5)
    for function in (diagnostics.last_report, diagnostics.max_report):
        with pytest.raises(ValueError, match="state"):
            function(nnx.state(watched))
    watched.opt_state = remedies.reset_max(watched.opt_state)
    assert diagnostics.max_report(watched.opt_state, per="tree")["binding"] == 0
    step(models[0], watched, inputs)
    other = "packed" if storage == "full" else "full"
    converted = amsgrad_jax.convert_storage(plain.opt_state, other)
    chex.assert_trees_all_close(
        diagnostics.max_report(converted, per="tree")["slowdown_q90"],
        diagnostics.max_report(plain.opt_state, per="tree")["slowdown_q90"],
        rtol=0.1,
    )
    plain = nnx.Optimizer(models[1], amsgrad_jax.amsgrad(0.1, storage=other), wrt=nnx.Param)
    plain.opt_state = converted
    step(models[1], plain, inputs)
    assert plain.opt_state[0].count[...] == 6


# The storage and the type of the axes are nothing to each other.
@pytest.mark.parametrize(("storage", "axis_types"), [("full", "Auto"), ("packed", "Explicit")])
def test_watch_in_shard_map_reports_whole_arrays(storage, axis_types):
    if jax.__version_info__ < (0, 7):
        pytest.skip("not every type says over which axes it is split")
    kinds = (getattr(jax.sharding.AxisType, axis_types),) * 2
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=kinds)
    specs = {"one": P("a"), "other": P(None, "b"), "both": P("b", "a"), "large": P("a"), "no": P()}
    shapes = {"one": (16, 6), "other": (3, 8), "both": (4, 8), "large": (80_000,), "no": (5,)}
    place = lambda tree, specs: jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, specs
    )
    rng = np.random.default_rng(0)
    draw = lambda: {
        name: jnp.asarray(rng.normal(size=shape) * 10 ** rng.uniform(-2, 1, shape), jnp.float32)
        for name, shape in shapes.items()
    }
    params = draw()
    report = functools.partial(diagnostics.max_report, learning_rate=0.1, quantiles=(0.1, 0.9))
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1, b2=0.9, storage=storage), 3, report)
    state = watched.init(params)
    places = optax.tree.map_params(
        watched, lambda _, spec: spec, state, specs, transform_non_params=lambda _: P()
    )
    state = place(state, places)
    step = jax.jit(
        jax.shard_map(
            watched.update, mesh=mesh, in_specs=(specs, places), out_specs=(specs, places)
        )
    )
    for _ in range(3):
        _, state = step(place(draw(), specs), state)
    whole = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state.inner_state)
    want, got = jax.jit(report)(whole), diagnostics.last_report(state, report)
    assert got.keys() == want.keys()
    for name, value in want.items():
        # Of a leaf that is larger than the sample each device takes one of its own.
        sampled = name.startswith("large") and "_q" in name
        np.testing.assert_allclose(got[name], value, rtol=0.1 if sampled else 1e-6, err_msg=name)
    in_groups = functools.partial(diagnostics.max_report, per=lambda path: path[0])
    parts = jax.jit(
        jax.shard_map(in_groups, mesh=mesh, in_specs=(places.inner_state,), out_specs=P())
    )(state.inner_state)
    chex.assert_trees_all_close(
        {name: value for name, value in parts.items() if not name.startswith("l")},
        {
            name: value
            for name, value in jax.jit(in_groups)(whole).items()
            if not name.startswith("l")
        },
        rtol=1e-6,
    )


def test_a_watch_of_several_runs():
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1, b2=0.9), 2)
    params = {"w": jnp.arange(1.0, 7.0).reshape(2, 3)}
    state = jax.vmap(watched.init)(params)
    alone = [watched.init({"w": row}) for row in params["w"]]
    for scale in (1.0, 0.1, 0.01, 0.001):
        gradients = {"w": params["w"] * jnp.array([[1.0], [scale]])}
        _, state = jax.jit(jax.vmap(watched.update))(gradients, state)
        alone = [
            watched.update({"w": row}, one)[1]
            for row, one in zip(gradients["w"], alone, strict=True)
        ]
    reports = jax.vmap(diagnostics.last_report)(state)
    for run, one in enumerate(alone):
        got = jax.tree.map(lambda leaf, k=run: leaf[k], reports)
        chex.assert_trees_all_close(got, diagnostics.last_report(one), rtol=1e-6)
    assert reports["w/slowdown_max"][1] > reports["w/slowdown_max"][0] == 1


def test_a_watched_state_travels(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    serialization = pytest.importorskip("flax.serialization")
    watched = diagnostics.watch(amsgrad_jax.amsgrad(0.1, b2=0.9), 2)
    params = {"w": jnp.arange(1.0, 5.0)}
    state = gradients_after(watched, params, [params, params])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", watched.init(params))
    for copied in (
        restored,
        serialization.from_bytes(watched.init(params), serialization.to_bytes(state)),
        pickle.loads(pickle.dumps(state)),
        copy.deepcopy(state),
    ):
        chex.assert_trees_all_equal(copied, state)
        want = diagnostics.last_report(state)
        chex.assert_trees_all_equal(diagnostics.last_report(copied), want)
        chex.assert_trees_all_equal(watched.update(params, copied), watched.update(params, state))


def test_watch_of_a_filtered_module():
    model = eqx.filter(eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    watched = diagnostics.watch(amsgrad_jax.amsgrad(1.0), 1)
    state = gradients_after(watched, model, [model])
    assert diagnostics.last_report(state)["layers/0/weight/slowdown_max"] == 1


# The picture.


def test_plot_shows_every_leaf_and_step():
    reports = {
        step: {f"{leaf}/{name}": value for leaf, value in (("a", step / 1.0), ("b/c", 1.0))}
        for step in (10, 20, 40)
        for name in ("slowdown_q90",)
    }
    reports = {step: row | {"a/binding": 0.5} for step, row in reports.items()}
    axes, bar = diagnostics.plot(reports).axes
    assert bar.get_ylabel() == "times slower than Adam"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b/c"]
    np.testing.assert_array_equal(axes.collections[0].get_array(), [[10, 20, 40], [1, 1, 1]])
    axes = diagnostics.plot(reports, "binding").axes[0]
    assert axes.collections[0].get_clim() == (0, 1)


@pytest.mark.parametrize("steps", [[100], [7, 10, 40], [0, 1], [-3.5, 2.5]])
@pytest.mark.parametrize("leaves", [[""], ["kernel"], ["a", "b", "c"]])
def test_plot_draws_cells_that_have_an_area_around_their_step(steps, leaves):
    keys = [f"{leaf}/slowdown_q90".lstrip("/") for leaf in leaves]
    figure = diagnostics.plot({step: dict.fromkeys(keys, 1.0 + abs(step)) for step in steps})
    corners = figure.axes[0].collections[0].get_coordinates()
    columns, rows = corners[0, :, 0], corners[:, 0, 1]
    assert corners.shape == (len(leaves) + 1, len(steps) + 1, 2)
    assert (np.diff(columns) > 0).all()
    assert (np.diff(rows) > 0).all()
    assert (columns[:-1] < steps).all()
    assert (steps < columns[1:]).all()
    assert (rows[:-1] < range(len(leaves))).all()
    assert (range(len(leaves)) < rows[1:]).all()
    # And when it is drawn: almost all within the axes is cells, not the white of the paper.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    left, bottom, right, top = figure.axes[0].get_window_extent().extents.astype(int)
    inside = pixels[bottom + 3 : top - 3, left + 3 : right - 3]
    assert (inside.min(axis=-1) < 255).mean() > 0.9


@pytest.mark.parametrize("values", [[1.0], [0.0, np.inf], [np.nan, 3.0]])
def test_plot_takes_what_a_broken_run_gives(values, tmp_path):
    reports = {step: {"slowdown_q90": jnp.float32(value)} for step, value in enumerate(values)}
    diagnostics.plot(reports).savefig(tmp_path / "map.png")


# The page.


def test_page_has_the_figures_of_the_benchmark():
    docs = pathlib.Path(__file__).parent.parent / "docs"
    page = (docs / "diagnostics.md").read_text()
    results = json.loads((docs / "spike.json").read_text())
    assert len(results["runs"]) == 8
    for name, table in spike.tables(results).items():
        assert f"<!-- {name} -->\n{table}\n\n" in page


def test_steps_needed_are_those_after_the_last_loss_above_the_goal():
    assert spike.steps_needed(np.array([0.5, 0.001, 0.02, 0.001, 0.001])) == 4 * 20
    assert spike.steps_needed(np.array([0.001, 0.001])) == 20
    assert spike.steps_needed(np.array([0.001, 0.5])) is None


# Bad input.


def test_state_without_amsgrad():
    adam = optax.chain(optax.clip(1.0), optax.adam(0.1)).init(jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"found no .*ScaleByAmsgradState.* optax.ScaleByAdamState"
    ):
        diagnostics.max_report(adam)
    with pytest.raises(ValueError, match=r"found no .*ScaleByAmsgradState"):
        diagnostics.watch(optax.sgd(0.1), 3).init(jnp.ones(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"per": "layer"}, ValueError, "per must be 'leaf', 'tree' or a function.* got 'layer'"),
        ({"quantiles": (0.5, 0.0)}, ValueError, r"quantiles must be in \(0, 1\], got 0.0"),
        ({"quantiles": (90,)}, ValueError, "got 90"),
        ({"quantiles": (float("nan"),)}, ValueError, r"quantiles must be in \(0, 1\], got nan"),
        ({"quantiles": 0.5}, TypeError, r"quantiles must be a sequence of numbers .*, got 0.5"),
        ({"quantiles": ("0.5",)}, TypeError, "quantiles must be numbers in .*, got '0.5'"),
        ({"quantiles": (True,)}, TypeError, "quantiles must be numbers in .*, got True"),
        ({"per": lambda path: None}, TypeError, "per must return the name .*, got None for 'w'"),
        ({"frozen": "100"}, TypeError, "frozen must be a slowdown of at least 1, got '100'"),
        (
            {"frozen": np.ones(2)},
            TypeError,
            "frozen must be a slowdown of at least 1, got an array of shape",
        ),
        ({"learning_rate": lambda count: None}, TypeError, "learning_rate must be .* got None"),
        ({"learning_rate": lambda count: -1.0}, ValueError, "learning_rate must be .* got -1.0"),
        ({"frozen": 0.5}, ValueError, "frozen must be .* got 0.5"),
        ({"frozen": float("nan")}, ValueError, "frozen must be"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be"),
        ({"b2": 1.0}, ValueError, "b2 must be"),
        ({"eps": None}, TypeError, "eps must be"),
        ({"convention": "torch"}, ValueError, "unknown convention"),
    ],
)
def test_bad_arguments_of_a_report(arguments, error, message):
    state = amsgrad_jax.amsgrad(0.1).init({"w": jnp.ones(3)})
    with pytest.raises(error, match=message):
        diagnostics.max_report(state, **arguments)


def test_leaves_and_states_whose_paths_look_alike():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}}
    state = amsgrad_jax.amsgrad(0.1).init(params)
    with pytest.raises(ValueError, match="two leaves have the name 'a/b'"):
        diagnostics.max_report(state)
    assert diagnostics.max_report(state, per=lambda path: path)["a/b/untouched"] == 1
    assert diagnostics.max_report(state, per="tree")["untouched"] == 1
    one = amsgrad_jax.amsgrad(0.1).init({"w": jnp.ones(2)})
    for per in ("tree", lambda path: path):
        with pytest.raises(ValueError, match="two groups of two states have the name 'a/b"):
            diagnostics.max_report({"a/b": one, "a": {"b": one}}, per=per)


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_a_leaf_that_has_more_coordinates_than_can_be_counted(storage):
    report = lambda params: diagnostics.max_report(
        amsgrad_jax.amsgrad(0.1, storage=storage).init(params)
    )
    jax.eval_shape(report, {"w": jax.ShapeDtypeStruct((2**16, 2**16 - 1), jnp.float32)})
    with pytest.raises(ValueError, match="w has 4,294,967,296 coordinates, but .* up to 4,294,967"):
        jax.eval_shape(report, {"w": jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)})


def test_bad_last_reports():
    optimizer = amsgrad_jax.amsgrad(0.1)
    params = {"w": jnp.ones(2)}
    watched = diagnostics.watch(optimizer, 1)
    state = watched.init(params)
    with pytest.raises(ValueError, match="one diagnostics.WatchState .*, got tuple with 0: .* nnx"):
        diagnostics.last_report(optimizer.init(params))
    with pytest.raises(ValueError, match="one diagnostics.WatchState .*, got dict with 2: "):
        diagnostics.last_report({"one": state, "other": state})
    other = functools.partial(diagnostics.max_report, quantiles=(0.1, 0.9))
    with pytest.raises(ValueError, match="report must be the one that watch was given"):
        diagnostics.last_report(state, other)
    fewer = functools.partial(diagnostics.max_report, quantiles=(0.1,))
    with pytest.raises(ValueError, match=r"figures has shape \[7\], but report makes 6 figures"):
        diagnostics.watch(optimizer, 1, fewer).update(params, state)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_interval(every, error):
    with pytest.raises(error, match=f"every must be .* got {every}"):
        diagnostics.watch(amsgrad_jax.amsgrad(0.1), every)


def test_bad_watches():
    optimizer = amsgrad_jax.amsgrad(0.1)
    with pytest.raises(TypeError, match="transformation must be an optax.Gradient.*, got 3 of"):
        diagnostics.watch(3, 2)
    with pytest.raises(TypeError, match="report must be a function of a state, got 3"):
        diagnostics.watch(optimizer, 2, 3)
    with pytest.raises(TypeError, match="state must be the WatchState that init returned, got tup"):
        diagnostics.watch(optimizer, 2).update(jnp.ones(2), optimizer.init(jnp.ones(2)))


@pytest.mark.parametrize(
    ("reports", "error", "message"),
    [
        (None, TypeError, "reports must be a mapping from steps to reports, got NoneType"),
        ([{"w/binding": 0.1}], TypeError, "reports must be a mapping .*, got list"),
        ({1: 3}, TypeError, "reports must be a mapping from steps to reports"),
        ({"one": {"w/binding": 0.1}}, TypeError, "steps of reports must be numbers, got 'one'"),
        ({np.inf: {"w/binding": 0.1}}, ValueError, "steps of reports must be finite, got inf"),
        ({1: {"w/binding": "x"}}, TypeError, "w/binding must be a real scalar, got 'x'"),
        (
            {1: {"w/binding": np.ones(2)}},
            TypeError,
            "w/binding must be a real scalar, got an array of shape",
        ),
        (
            {1: {"w/binding": 0.1}, 2: {"w/binding": 0.1, "b/binding": 0.1}},
            ValueError,
            "reports must all have the same keys, .* steps 1 and 2 only one has 'b/binding'",
        ),
        (
            {2: {"b/binding": 0.1}, 1: {"w/binding": 0.1, "b/binding": 0.1}},
            ValueError,
            "reports must all have the same keys, .* steps 1 and 2 only one has 'w/binding'",
        ),
    ],
)
def test_bad_reports(reports, error, message):
    with pytest.raises(error, match=message):
        diagnostics.plot(reports, "binding")


def test_bad_plots(monkeypatch):
    with pytest.raises(ValueError, match="reports are empty"):
        diagnostics.plot({})
    with pytest.raises(ValueError, match="figure must be one of .* binding, got 'speed'"):
        diagnostics.plot({1: {"w/binding": 0.1}}, "speed")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[demo\]' in a clone"):
        diagnostics.plot({1: {"w/binding": 0.1}}, "binding")


@pytest.mark.parametrize("storage", ["full", "packed"])
def test_a_state_of_nnx_without_its_classes(storage):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, amsgrad_jax.amsgrad(0.1, storage=storage), wrt=nnx.Param)
    with pytest.raises(ValueError, match="without their class.* an nnx.Optimizer its opt_state"):
        diagnostics.max_report(nnx.state(optimizer))
    assert diagnostics.max_report(optimizer.opt_state)["kernel/untouched"] == 1
