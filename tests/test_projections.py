"""Projections beside scipy, a long-double solver and closed forms; `projected` beside both."""

import re
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import amsgrad_jax
from amsgrad_jax import interop, projections
from tests import reference
from tests.variants import FULL_VARIANTS, enable_x64

SIZE = 8
RADIUS = 1.5
NORMAL = np.float32([1, -2, 0.5, 3, 1, 0, 2, -1])
LOWER, UPPER = np.float32([-1, 0, -np.inf, 0.5, -3, -1, 0, 0]), np.float32(1)

# One program for each set and shape: without jit, each operation would be compiled alone.
project = jax.jit(projections.project, static_argnums=0)
CONSTRAINTS = {
    "box": projections.box(LOWER, UPPER),
    "nonnegative": projections.nonnegative(),
    "simplex": projections.simplex(RADIUS),
    "l1_ball": projections.l1_ball(RADIUS),
    "l2_ball": projections.l2_ball(RADIUS),
    "halfspace": projections.halfspace(NORMAL, RADIUS),
    "hyperplane": projections.hyperplane(NORMAL, RADIUS),
}
every_constraint = pytest.mark.parametrize("name", CONSTRAINTS)
every_solved = pytest.mark.parametrize("name", list(CONSTRAINTS)[2:])


# Solvers that share nothing with the package: numpy in long double, one vector at a time.


def exact(name, y, w):
    y, w = np.longdouble(y), np.longdouble(w)
    w = np.maximum(w, w.max() * np.longdouble(1e-200))  # the limit of a weight of 0
    a, radius = np.longdouble(NORMAL), np.longdouble(RADIUS)
    if name == "box":
        return np.minimum(np.maximum(y, LOWER), UPPER)
    if name == "nonnegative":
        return np.maximum(y, 0)
    if name == "simplex":
        return exact_simplex(y, w, radius)
    if name == "l1_ball":
        return y if abs(y).sum() <= radius else np.sign(y) * exact_simplex(abs(y), w, radius)
    if name == "l2_ball":
        return exact_l2_ball(y, w, radius)
    excess = a @ y - radius
    if name == "halfspace":
        excess = max(excess, 0)
    return y - excess * (a / w) / (a * a / w).sum()


def exact_simplex(y, w, total):
    """By enumeration: of the sorted active sets, the one whose multiplier fits it."""
    order = np.argsort(-w * y)
    for active in range(len(y), 0, -1):
        chosen = order[:active]
        multiplier = (y[chosen].sum() - total) / (1 / w[chosen]).sum()
        if (w * y)[chosen[-1]] > multiplier:
            return np.maximum(0, y - multiplier / w)
    raise AssertionError


def exact_l2_ball(y, w, radius):
    """By bisection on the logarithm of the multiplier."""
    if (y**2).sum() <= radius**2:
        return y
    low = np.log(w.min()) - 80
    high = np.log(w.max() * (1 + abs(y).sum() / radius))
    for _ in range(150):
        middle = (low + high) / 2
        if ((w * y / (w + np.exp(middle))) ** 2).sum() > radius**2:
            low = middle
        else:
            high = middle
    return w * y / (w + np.exp(low))


def problems(dtype):
    """Hundreds of points with weights: ordinary ones first, then what is hard about them."""
    rng = np.random.default_rng(0)
    rows = 50

    def points(size=1.0):
        return size * rng.normal(size=(rows, SIZE)) * 10 ** rng.uniform(-1, 2, (rows, 1))

    def weights(decades):
        return 10 ** rng.uniform(-decades, decades, (rows, SIZE))

    huge = 30 if dtype == "float64" else 8
    kinds = [
        (points(), weights(2)),
        (np.round(points()), np.ones((rows, SIZE))),  # ties
        (points(1e-4), weights(2)),  # inside the balls
        (points(), weights(2) * (rng.uniform(size=(rows, SIZE)) > 0.3)),  # weights of 0
        (points(), weights(huge)),  # huge and tiny weights
        (points(10.0 ** (huge / 4)), weights(2)),  # far away
    ]
    return (np.concatenate(parts).astype(dtype) for parts in zip(*kinds, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-10)])
@every_constraint
def test_agrees_with_the_exact_solution(name, dtype, tolerance):
    with enable_x64(dtype == "float64"):
        ys, ws = problems(dtype)
        xs = np.asarray(jax.jit(jax.vmap(CONSTRAINTS[name]))(ys, ws))
        assert xs.dtype == dtype
    expected = np.array([exact(name, y, w) for y, w in zip(ys, ws, strict=True)])
    scale = np.maximum(abs(ys), abs(expected)).max(1) + RADIUS
    error = (abs(xs - expected).max(1) / scale).max()
    print(f"{name}, {dtype}: largest relative error {error:.1e}")
    assert error < tolerance


@every_solved
def test_agrees_with_scipy(name):
    """Beside SLSQP, to its accuracy."""
    equality = name in ("simplex", "hyperplane")
    rng = np.random.default_rng(1)
    split = np.block([np.eye(SIZE), -np.eye(SIZE)])  # x = p - q with p, q >= 0, for the L1 ball
    for _ in range(5):
        y, w = 2 * rng.normal(size=SIZE), rng.uniform(0.2, 5, SIZE)
        matrix = split if name == "l1_ball" else np.eye(SIZE)
        room = {
            "simplex": lambda z: RADIUS - z.sum(),
            "l1_ball": lambda z: RADIUS - z.sum(),
            "l2_ball": lambda z: RADIUS**2 - (z**2).sum(),
            "halfspace": lambda z: RADIUS - NORMAL @ z,
            "hyperplane": lambda z: RADIUS - NORMAL @ z,
        }[name]
        found = scipy.optimize.minimize(
            lambda z, y=y, w=w, matrix=matrix: w @ (matrix @ z - y) ** 2,
            np.full(matrix.shape[1], RADIUS / SIZE / 2),
            jac=lambda z, y=y, w=w, matrix=matrix: 2 * matrix.T @ (w * (matrix @ z - y)),
            bounds=[(0, None)] * matrix.shape[1] if name in ("simplex", "l1_ball") else None,
            constraints={"type": "eq" if equality else "ineq", "fun": room},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert room(found.x) > -1e-9
        got = project(CONSTRAINTS[name], jnp.float32(y), jnp.float32(w))
        np.testing.assert_allclose(got, matrix @ found.x, atol=1e-5)


# The conditions of optimality. x in F is the projection of y if and only if the gradient
# g = w (y - x) is normal to F there: <g, v - x> <= 0 for all v in F.

coordinates = st.lists(st.floats(-100, 100), min_size=SIZE, max_size=SIZE).map(np.array)
metrics = st.lists(st.floats(1e-3, 1e3), min_size=SIZE, max_size=SIZE).map(np.array)

GREATEST = {  # of <g, v> over v in F
    "simplex": lambda g: RADIUS * g.max(),
    "l1_ball": lambda g: RADIUS * abs(g).max(),
    "l2_ball": lambda g: RADIUS * np.sqrt(g @ g),
    # Elsewhere infinite: what is not along the normal must vanish.
    "halfspace": lambda g: RADIUS * max(g @ NORMAL / (NORMAL @ NORMAL), 0),
    "hyperplane": lambda g: RADIUS * g @ NORMAL / (NORMAL @ NORMAL),
}
ALLOWED = {  # how far outside
    "simplex": lambda x: max(abs(x.sum() - RADIUS), -x.min()),
    "l1_ball": lambda x: abs(x).sum() - RADIUS,
    "l2_ball": lambda x: np.sqrt(x @ x) - RADIUS,
    "halfspace": lambda x: NORMAL @ x - RADIUS,
    "hyperplane": lambda x: abs(NORMAL @ x - RADIUS),
    "nonnegative": lambda x: -x.min(),
    "box": lambda x: max((LOWER - x).max(), (x - UPPER).max()),
}
JITTED = {name: jax.jit(constraint) for name, constraint in CONSTRAINTS.items()}


@every_solved
@settings(max_examples=60, deadline=None)
@given(y=coordinates, w=metrics)
def test_satisfies_the_conditions_of_optimality(name, y, w):
    with enable_x64():
        x = np.asarray(JITTED[name](y, w))
        again = np.asarray(JITTED[name](x, w))
    size = abs(y).max() + RADIUS
    rounding = 1e-13 * size * w.max() / w.min()
    assert ALLOWED[name](x) < rounding
    np.testing.assert_allclose(again, x, rtol=0, atol=rounding)  # a projection, projected
    g = w * (y - x)
    assert GREATEST[name](g) - g @ x < 1e-12 * w.max() * size**2 + w.max() * size * rounding
    if name in ("halfspace", "hyperplane"):
        along = NORMAL * (g @ NORMAL) / (NORMAL @ NORMAL)
        np.testing.assert_allclose(g, along, rtol=0, atol=w.max() * rounding)


# Derivatives.


@every_solved
def test_derivatives_agree_with_finite_differences(name):
    """With respect to the point, the weights, and the size of the set."""
    make = {
        "simplex": projections.simplex,
        "l1_ball": projections.l1_ball,
        "l2_ball": lambda r: projections.l2_ball(r, 0.3 * NORMAL),
        "halfspace": lambda b: projections.halfspace(NORMAL, b),
        "hyperplane": lambda b: projections.hyperplane(NORMAL, b),
    }[name]
    rng = np.random.default_rng(2)
    y, w = 2 * rng.normal(size=SIZE), rng.uniform(0.2, 5, SIZE)
    y *= np.sign(y @ NORMAL)  # outside of the half-space, too
    at = np.concatenate([y, w, [RADIUS]])
    f = lambda at: make(at[-1])(at[:SIZE], at[SIZE:-1])
    with enable_x64():
        each = 1e-6 * np.eye(len(at))
        far, near = (jax.jit(jax.vmap(f))(at + step) for step in (each, -each))
        finite = np.transpose(far - near) / 2e-6
        assert all(abs(part).max() > 0.1 for part in np.split(finite, [SIZE, 2 * SIZE], axis=1))
        # Forward mode is part of reverse mode, but for the ball's own rule.
        for jacobian in (jax.jacrev, jax.jacfwd)[: 2 if name == "l2_ball" else 1]:
            np.testing.assert_allclose(jax.jit(jacobian(f))(at), finite, atol=1e-7)


@pytest.mark.parametrize("name", ["box", "nonnegative", "l1_ball", "l2_ball", "halfspace"])
def test_leaves_what_is_inside_as_it_is(name):
    # On the bound of the box, too, where clipping has the derivative 1/2.
    y = jnp.array([0.1, 0.0, 0.1, 0.5, 0.1, 0.1, 0.0, 0.4])
    w = jnp.geomspace(1e-3, 1e3, SIZE)
    chex.assert_trees_all_equal(JITTED[name](y, w), y)
    slopes = jax.jit(jax.jacrev(CONSTRAINTS[name]))
    chex.assert_trees_all_equal(slopes(y, w), jnp.eye(SIZE))
    if name != "box":
        chex.assert_trees_all_equal(slopes(jnp.zeros(SIZE), w), jnp.eye(SIZE))


# Weights at their limits.


@every_constraint
def test_weights_that_are_no_metric(name):
    y = jnp.arange(1.0, 1 + SIZE)
    plain = projections.project(CONSTRAINTS[name], y)
    for w in (jnp.zeros(SIZE), jnp.full(SIZE, jnp.inf), jnp.full(SIZE, 1e-30)):
        chex.assert_trees_all_close(projections.project(CONSTRAINTS[name], y, w), plain)
    fixed = jnp.ones(SIZE).at[3].set(jnp.inf)
    assert jnp.isfinite(projections.project(CONSTRAINTS[name], y, fixed)).all()


def test_a_coordinate_without_weight_goes_first_and_one_of_infinite_weight_last():
    budget = projections.hyperplane(1.0, 0.0)
    y = jnp.array([1.0, 2.0, 3.0])
    x = project(budget, y, jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(x, [1, -4, 3])
    x = project(budget, y, jnp.array([1.0, jnp.inf, 1.0]))
    np.testing.assert_allclose(x, [-2, 2, 0], atol=1e-6)


@pytest.mark.parametrize(("dtype", "smallest"), [("float32", 1e-19), ("float64", 1.5e-154)])
def test_weights_below_the_smallest_count_as_much_as_that(dtype, smallest):
    """By fractions: of tiny weights those above it share as they weigh, those below it alike."""
    y = [Fraction(1), Fraction(2), Fraction(3)]
    with enable_x64(dtype == "float64"):
        for tiny, shares in (((3e3, 6e3), (2, 1)), ((3e-3, 6e-6), (1, 1)), ((0.0, 1e-3), (1, 1))):
            weights = np.array([1.0, *(smallest * np.array(tiny))], dtype)
            x = project(
                projections.hyperplane(1.0, 0.0), jnp.array([1.0, 2.0, 3.0], dtype), weights
            )
            parts = [Fraction(0), *(Fraction(share, sum(shares)) for share in shares)]
            want = [float(a - sum(y) * part) for a, part in zip(y, parts, strict=True)]
            np.testing.assert_allclose(x, want, rtol=4 * jnp.finfo(dtype).eps)


@every_constraint
def test_nan_is_seen(name):
    y = jnp.ones(SIZE).at[2].set(jnp.nan)
    assert jnp.isnan(CONSTRAINTS[name](y, jnp.ones(SIZE))[2])


# Trees.

TREE = {"a": jnp.array([[2.0, -1.0], [0.5, 3.0]]), "b": jnp.array([1.0, -2.0, 4.0]), "c": None}
TREE_WEIGHTS = {
    "a": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
    "b": jnp.array([2.0, 1.0, 0.5]),
    "c": None,
}
OVER = {
    "simplex": lambda over: projections.simplex(RADIUS, over=over),
    "l1_ball": lambda over: projections.l1_ball(RADIUS, over=over),
    "l2_ball": lambda over: projections.l2_ball(RADIUS, over=over),
    "halfspace": lambda over: projections.halfspace(2.0, RADIUS, over=over),
    "hyperplane": lambda over: projections.hyperplane(2.0, RADIUS, over=over),
}


@pytest.mark.parametrize("name", ["simplex", "l2_ball", "halfspace"])
def test_over_the_tree_or_over_each_leaf(name):
    flat, unravel = jax.flatten_util.ravel_pytree(TREE)
    weights, _ = jax.flatten_util.ravel_pytree(TREE_WEIGHTS)
    together = project(OVER[name]("tree"), TREE, TREE_WEIGHTS)
    vector = unravel(project(OVER[name]("tree"), flat, weights))
    chex.assert_trees_all_close(together, vector, rtol=1e-6)
    each = project(OVER[name]("leaf"), TREE, TREE_WEIGHTS)
    for leaf in ("a", "b"):
        alone = project(OVER[name]("tree"), TREE[leaf], TREE_WEIGHTS[leaf])
        chex.assert_trees_all_close(each[leaf], alone, rtol=1e-6)


@pytest.mark.parametrize("over", ["tree", "leaf"])
@pytest.mark.parametrize("name", ["simplex", "l2_ball", "halfspace"])
def test_takes_any_tree(name, over):
    params = {
        "scalar": jnp.float32(3),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "half": jnp.ones(2, jnp.bfloat16),
    }
    x = project(OVER[name](over), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(x, params)
    chex.assert_trees_all_equal(project(OVER[name](over), {}), {})


def test_mixed_precision_is_solved_in_the_wider_one():
    with enable_x64():
        params = {"single": jnp.float32([3, 1]), "double": jnp.array([2.0, 0.3])}
        x = project(projections.l1_ball(2.0), params)
        chex.assert_trees_all_equal_dtypes(x, params)
        np.testing.assert_allclose(x["single"], [1.5, 0], atol=1e-7)
        np.testing.assert_allclose(x["double"], [0.5, 0], atol=1e-15)


def test_rows_of_a_matrix():
    y = jnp.array([[2.0, 1.0], [0.0, -1.0], [0.3, 0.7]])
    rows = jax.vmap(projections.simplex())
    np.testing.assert_allclose(project(rows, y), [[1, 0], [1, 0], [0.3, 0.7]], atol=1e-6)


def test_complex_ball_is_the_real_one_of_twice_the_size():
    y = jnp.array([3 + 4j, -1j, 2.0])
    w = jnp.array([1.0, 2.0, 0.5])
    ball = projections.l2_ball(2.0, 0.1j)
    parts = project(
        projections.l2_ball(2.0, jnp.array([0, 0, 0, 0.1, 0.1, 0.1])),
        jnp.concatenate([y.real, y.imag]),
        jnp.concatenate([w, w]),
    )
    np.testing.assert_allclose(project(ball, y, w), parts[:3] + 1j * parts[3:], rtol=1e-6)


# The optimizer.


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        *((v, "simplex") for v in FULL_VARIANTS if v.factory == "amsgradw"),
        *((v, "l2_ball") for v in FULL_VARIANTS if v.factory == "amsgrad"),
        (FULL_VARIANTS[0], "l1_ball"),
    ],
    ids=str,
)
def test_a_step_is_that_of_the_paper(variant, name):
    """Beside the float64 formulas and the exact projection, from a start inside."""
    hyper = dict(b1=0.9, b2=0.99, eps=1e-8)
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(6, SIZE)) * 10 ** rng.uniform(-2, 2, SIZE)
    with enable_x64():
        optimizer = projections.projected(variant(0.5, **hyper), CONSTRAINTS[name])
        params = jnp.full(SIZE, RADIUS / SIZE)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        expected = np.asarray(params)
        decay = 1e-2 if variant.factory == "amsgradw" else 0
        steps = reference.run(variant.convention, gradients, nesterov=variant.nesterov, **hyper)
        for gradient, (direction, moments) in zip(gradients, steps, strict=True):
            updates, state = update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
            y = expected - 0.5 * (direction + decay * expected)
            expected = np.float64(exact(name, y, np.sqrt(moments.x) + 1e-8))
            np.testing.assert_allclose(params, expected, rtol=1e-10, atol=1e-12)
            assert ALLOWED[name](np.asarray(params)) < 1e-14


def test_packed_moments_are_allowed_and_near_the_same_path():
    make = lambda storage: projections.projected(
        amsgrad_jax.amsgradw(0.3, b2=0.9, storage=storage), projections.simplex()
    )
    _, every = run(make("packed"), START, pair(0))
    total = every["w"].sum(1) + every["b"].sum(1)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert all(jnp.all(leaf > -1e-7) for leaf in every.values())
    # In the first step words differ by their bounds only: 1/32 in the weights, 1/16 in mu.
    _, full = run(make("full"), START, pair(0))
    way = lambda path: jnp.concatenate([path[name][0] - START[name] for name in path])
    assert jnp.abs(way(every) - way(full)).max() < (1 / 32 + 1 / 16) * jnp.abs(way(full)).max()


def test_state_is_that_of_the_optimizer_alone():
    inner = amsgrad_jax.amsgrad(0.1)
    optimizer = projections.projected(inner, projections.nonnegative())
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    chex.assert_trees_all_equal(state, inner.init(params))
    _, state = optimizer.update(params, state, params)
    _, alone = inner.update(params, inner.init(params), params)
    chex.assert_trees_all_equal(state, alone)
    assert optax.tree.get(state, "nu_max")["w"].shape == (3,)
    assert interop.get_moments(state, params).count == 1


def test_without_history_eps_is_the_metric():
    optimizer = projections.projected(amsgrad_jax.amsgrad(0.1), projections.simplex(), eps=1e-3)
    params = jnp.array([1.0, 1.0, 1.0])
    gradients = jnp.array([1.0, 0.0, 0.0])  # nu_max of 1e-3 in the first coordinate
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    weights = np.array([np.sqrt(1e-3) + 1e-3, 1e-3, 1e-3])
    np.testing.assert_allclose(
        params + updates, exact_simplex(np.array([0.9, 1, 1]), weights, 1), rtol=1e-5
    )


def run(optimizer, params, gradients):
    """Returns the params after a scan over gradients, and those after each step."""

    def one(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (last, _), every = jax.jit(lambda p: jax.lax.scan(one, (p, optimizer.init(p)), gradients))(
        params
    )
    return last, every


def pair(key, steps=6):
    w, b = jax.random.split(jax.random.key(key))
    return {"w": jax.random.normal(w, (steps, 3)), "b": 10 * jax.random.normal(b, (steps, 2))}


START = {"w": jnp.array([0.2, 0.3, 0.1]), "b": jnp.array([0.3, 0.1])}
INNER = amsgrad_jax.amsgrad(0.3)
SET = projections.hyperplane(1.0, 1.0)  # the fastest to compile that is solved in the metric
LABELS = {"w": "w", "b": "b"}
COMPOSED = {
    "chain inside": projections.projected(
        optax.chain(
            optax.scale(1.0), amsgrad_jax.scale_by_amsgrad(), optax.scale_by_learning_rate(0.3)
        ),
        SET,
    ),
    "chain around": optax.chain(optax.scale(1.0), projections.projected(INNER, SET)),
    "masks inside": projections.projected(
        optax.chain(
            optax.masked(INNER, {"w": True, "b": False}),
            optax.masked(INNER, {"w": False, "b": True}),
        ),
        SET,
    ),
    "mask around": optax.masked(projections.projected(INNER, SET), {"w": True, "b": True}),
    "partition inside": projections.projected(
        optax.partition({"w": INNER, "b": amsgrad_jax.amsgrad(0.3)}, LABELS), SET
    ),
    "partition around": optax.partition(
        {"all": projections.projected(INNER, SET)}, {"w": "all", "b": "all"}
    ),
    "inject inside": projections.projected(
        optax.inject_hyperparams(amsgrad_jax.amsgrad)(learning_rate=0.3), SET
    ),
    "inject around": optax.inject_hyperparams(
        lambda learning_rate, total: projections.projected(
            amsgrad_jax.amsgrad(learning_rate), projections.hyperplane(1.0, total)
        )
    )(learning_rate=0.3, total=1.0),
    "finite inside": projections.projected(optax.apply_if_finite(INNER, 3), SET),
    "finite around": optax.apply_if_finite(projections.projected(INNER, SET), 3),
    "steps inside": projections.projected(
        optax.MultiSteps(INNER, 1).gradient_transformation(), SET
    ),
    "steps around": optax.MultiSteps(
        projections.projected(INNER, SET), 1
    ).gradient_transformation(),
}


@pytest.fixture(scope="module")
def alone():
    return run(projections.projected(INNER, SET), START, pair(0))


@pytest.mark.parametrize("name", COMPOSED)
def test_composes(name, alone):
    """In and around what changes nothing, the same parameters, allowed after each step."""
    last, every = run(COMPOSED[name], START, pair(0))
    chex.assert_trees_all_close(last, alone[0], rtol=1e-4, atol=1e-6)
    total = every["w"].sum(1) + every["b"].sum(1)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_several_gradients_a_step():
    for optimizer in (
        projections.projected(optax.MultiSteps(INNER, 2).gradient_transformation(), SET),
        optax.MultiSteps(projections.projected(INNER, SET), 2).gradient_transformation(),
    ):
        _, every = run(optimizer, START, pair(0))
        total = every["w"].sum(1) + every["b"].sum(1)
        np.testing.assert_allclose(total, 1, atol=1e-6)
        chex.assert_trees_all_close(every["w"][1], every["w"][2], atol=1e-6)  # no step between
        assert abs(every["w"][3] - every["w"][2]).max() > 1e-2


def test_recovers_from_a_nan():
    gradients = pair(0)
    gradients["w"] = gradients["w"].at[2].set(jnp.nan)
    for name in ("finite inside", "finite around"):
        _, every = run(COMPOSED[name], START, gradients)
        assert all(jnp.isfinite(leaf).all() for leaf in every.values())


def test_some_leaves_only_or_each_its_own_set():
    optimizer = optax.partition(
        {"mixture": projections.projected(INNER, SET), "free": INNER}, {"w": "mixture", "b": "free"}
    )
    last, every = run(optimizer, START, pair(1))
    np.testing.assert_allclose(every["w"].sum(1), 1, atol=1e-6)
    unconstrained, _ = run(INNER, START, pair(1))
    np.testing.assert_allclose(last["b"], unconstrained["b"], rtol=1e-5)


def test_a_set_of_ones_own():
    """All coordinates equal: the mean in the metric."""

    def equal(y, weights):
        mean = lambda y, w: jnp.full_like(y, jnp.sum(w * y) / jnp.sum(w))
        return jax.tree.map(mean, y, weights)

    gradient = jnp.array([1.0, 10.0, -2.0])
    optimizer = projections.projected(INNER, equal)
    params = jnp.zeros(3)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # The first step is -0.3 sign(g), its metric |g|.
    np.testing.assert_allclose(updates, -0.3 * (1 + 10 - 2) / 13, rtol=1e-5)


def test_compiles_once():
    optimizer = projections.projected(amsgrad_jax.amsgrad(0.1), SET)
    traces = []

    @jax.jit
    def one(params, state, gradients):
        traces.append(None)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = START, optimizer.init(START)
    for key in range(20):
        params, state = one(params, state, jax.tree.map(lambda g: g[0], pair(key)))
    assert len(traces) == 1


def test_vmap_over_hyperparameters():
    @jax.jit
    def last(learning_rate, radius):
        optimizer = projections.projected(
            amsgrad_jax.amsgrad(learning_rate), projections.l2_ball(radius)
        )
        return run(optimizer, START, pair(2))[0]

    rates, radii = jnp.array([0.1, 0.3, 1.0]), jnp.array([0.5, 1.0, 2.0])
    together = jax.vmap(last)(rates, radii)
    for i in range(3):
        alone = last(rates[i], radii[i])
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5)
        assert optax.tree.norm(alone) < radii[i] * (1 + 1e-6)


@pytest.mark.parametrize("name", ["simplex", "l2_ball"])
def test_differentiates_through_steps(name):
    """With respect to the learning rate, and a coordinate that never had a gradient."""
    gradients = np.random.default_rng(4).normal(size=(3, SIZE)) * (np.arange(SIZE) != 2)

    @jax.jit
    def last(learning_rate, gradients):
        optimizer = projections.projected(
            amsgrad_jax.amsgrad(learning_rate), CONSTRAINTS[name], eps=1e-2
        )
        params = jnp.full(SIZE, RADIUS / SIZE)
        return jnp.sum(jnp.arange(SIZE) * run(optimizer, params, gradients)[0])

    with enable_x64():
        gradients = jnp.asarray(gradients)
        slope = jax.jit(jax.grad(last, argnums=(0, 1)))(0.2, gradients)
        step = 1e-6
        finite = (last(0.2 + step, gradients) - last(0.2 - step, gradients)) / (2 * step)
        np.testing.assert_allclose(slope[0], finite, rtol=1e-6)
        assert abs(finite) > 1e-3
        assert jnp.isfinite(slope[1]).all()


@pytest.mark.parametrize("name", ["simplex", "l1_ball", "l2_ball", "nonnegative"])
def test_half_precision_holds_to_its_rounding(name):
    rng = np.random.default_rng(5)
    optimizer = projections.projected(amsgrad_jax.amsgrad(0.3), CONSTRAINTS[name])
    params = jnp.full(SIZE, RADIUS / SIZE, jnp.bfloat16)
    gradients = jnp.asarray(rng.normal(size=(20, SIZE)), jnp.bfloat16)
    last, every = run(optimizer, params, gradients)
    assert last.dtype == jnp.bfloat16
    outside = max(ALLOWED[name](x) for x in np.asarray(every, np.float64))
    # Half a unit in the last place of updates and of parameters, for each coordinate.
    assert outside <= (0 if name == "nonnegative" else 2**-8 * RADIUS * SIZE**0.5)


@pytest.mark.parametrize(
    ("params", "updates", "below"),
    [
        ("float32", "float32", 0),
        ("bfloat16", "bfloat16", 0),
        ("float16", "float16", 0),
        ("bfloat16", "float32", 0),
        ("float32", "bfloat16", 2**-8),  # half a unit in the last of 8 bits
        ("float32", "float16", 2**-11),
    ],
)
def test_nonnegative_holds_exactly_unless_updates_are_narrower(params, updates, below):
    rng = np.random.default_rng(7)
    before = jnp.asarray(rng.exponential(size=2000), params)
    gradients = jnp.asarray(rng.uniform(-1, 3, size=2000), updates)
    optimizer = projections.projected(amsgrad_jax.amsgrad(3.0), projections.nonnegative())
    steps, _ = optimizer.update(gradients, optimizer.init(before), before)
    after = optax.apply_updates(before, steps)
    assert (steps.dtype, after.dtype) == (updates, params)
    share = np.asarray(after, np.float64) / np.asarray(before, np.float64)
    assert (share >= -below).all()
    assert (abs(share) <= below).sum() > 1000  # as many as have a positive gradient
    assert ((share < 0).sum() > 100) == (below > 0)


def test_numbers_are_parameters_too():
    x = project(projections.simplex(), [2.0, {"w": 1.5}])
    chex.assert_trees_all_close(x, [jnp.float32(0.75), {"w": jnp.float32(0.25)}])
    x = project(lambda y, weights: 0.25, jnp.float32(3))
    chex.assert_trees_all_equal(x, jnp.float32(0.25))


def test_a_start_outside_is_inside_after_one_step():
    params = jnp.full(SIZE, 100.0)
    optimizer = projections.projected(amsgrad_jax.amsgrad(1e-3), projections.l2_ball(RADIUS))
    updates, _ = optimizer.update(jnp.ones(SIZE), optimizer.init(params), params)
    assert jnp.linalg.norm(params + updates) < RADIUS * (1 + 1e-4)


@pytest.mark.parametrize("name", ["simplex", "l1_ball", "l2_ball"])
def test_reaches_the_minimum_that_scipy_finds_and_the_euclidean_projection_does_not(name):
    rng = np.random.default_rng(6)
    scales = np.geomspace(0.1, 10, SIZE)
    mixing = rng.normal(size=(SIZE, SIZE)) * scales
    matrix, target = mixing.T @ mixing / SIZE + 0.1 * np.eye(SIZE), rng.normal(size=SIZE)
    loss = lambda x: 0.5 * (x - target) @ matrix @ (x - target)
    # The sets in a form that is smooth: x = p - q for the L1 ball.
    split = np.block([np.eye(SIZE), -np.eye(SIZE)]) if name == "l1_ball" else np.eye(SIZE)
    rooms = {
        "simplex": ("eq", lambda z: z.sum() - RADIUS),
        "l1_ball": ("ineq", lambda z: RADIUS - z.sum()),
        "l2_ball": ("ineq", lambda z: RADIUS**2 - z @ z),
    }
    kind, room = rooms[name]
    best = scipy.optimize.minimize(
        lambda z: loss(split @ z),
        np.full(split.shape[1], 0.1),
        jac=lambda z: split.T @ matrix @ (split @ z - target),
        bounds=None if name == "l2_ball" else [(0, None)] * split.shape[1],
        constraints={"type": kind, "fun": room},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    optax_set = getattr(optax.projections, "projection_" + name)
    euclidean = lambda y, weights: optax_set(y, RADIUS)

    def end(constraint):
        optimizer = projections.projected(amsgrad_jax.amsgrad(0.05, b1=0.5, b2=0.9), constraint)

        @jax.jit
        def solve(params):
            def body(_, carry):
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                return optax.apply_updates(params, updates), state

            return jax.lax.fori_loop(0, 5000, body, (params, optimizer.init(params)))[0]

        return np.asarray(solve(jnp.full(SIZE, RADIUS / SIZE)))

    with enable_x64():
        ours, theirs = end(CONSTRAINTS[name]), end(euclidean)
    np.testing.assert_allclose(ours, split @ best.x, atol=1e-4)
    assert loss(theirs) > loss(split @ best.x) * 1.001
    assert abs(theirs - split @ best.x).max() > 0.1


# Bad input.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: projections.box(1.0, 0.0), ValueError, "lower must not be above upper, got 1.0"),
        (lambda: projections.box({"w": 0.0}, {"w": -1.0}), ValueError, "at 'w'"),
        (lambda: projections.box({"w": 0.0}, {"v": 1.0}), ValueError, "trees of one structure"),
        (lambda: projections.box(0.0, jnp.nan), ValueError, "upper must not be NaN"),
        (lambda: projections.box(None, 1.0), TypeError, "lower must be a real number"),
        (lambda: projections.box("0", 1.0), TypeError, "lower must be a real number"),
        (lambda: projections.box(True, 2.0), TypeError, "lower must be a real number"),
        (lambda: projections.box({"w": 0.0}, {"w": np.ones(2, bool)}), TypeError, "array([ True,"),
        (lambda: projections.box(0.0, np.array(["a"])), TypeError, "upper must be a real number"),
        (lambda: projections.box(np.inf, np.inf), ValueError, "lower must not be inf, got inf"),
        (
            lambda: projections.box(-np.inf, {"w": np.array([1, -np.inf])}),
            ValueError,
            "upper must not be -inf, got [  1. -inf] at 'w'",
        ),
        (
            lambda: projections.box({"w": np.zeros(2)}, {"w": np.ones(3)}),
            ValueError,
            "lower of shape (2,) and upper of shape (3,) do not fit each other at 'w'",
        ),
        (lambda: projections.box(0j, 1.0), TypeError, "lower must be a real number"),
        (lambda: projections.simplex(0.0), ValueError, "total must be positive, got 0.0"),
        (lambda: projections.simplex(-1.0), ValueError, "total must be a number in [0, inf)"),
        (lambda: projections.l1_ball(0), ValueError, "radius must be positive, got 0.0"),
        (lambda: projections.l2_ball(float("nan")), ValueError, "radius must be a number"),
        (lambda: projections.l2_ball("1"), TypeError, "radius must be a number"),
        (lambda: projections.l2_ball(1.0, jnp.nan), ValueError, "center must not be NaN"),
        (
            lambda: projections.l2_ball(1.0, {"w": np.array([0, np.inf])}),
            ValueError,
            "center must be finite, got [ 0. inf] at 'w'",
        ),
        (lambda: projections.l2_ball(1.0, True), TypeError, "center must be a number"),
        (lambda: projections.halfspace(True, 1.0), TypeError, "normal must be a real number"),
        (lambda: projections.halfspace(1.0, True), TypeError, "offset must be a real number"),
        (
            lambda: projections.l2_ball(1.0, over="rows"),
            ValueError,
            "unknown over 'rows': it must be 'tree' or 'leaf'",
        ),
        (lambda: projections.halfspace(0.0, 1.0), ValueError, "normal must not be zero"),
        (lambda: projections.halfspace(jnp.inf, 1.0), ValueError, "normal must be finite"),
        (lambda: projections.hyperplane(1.0, jnp.inf), ValueError, "offset must be finite"),
        (lambda: projections.hyperplane(1.0, jnp.ones(2)), ValueError, "offset must be one number"),
        (
            lambda: projections.halfspace({"w": jnp.ones(2), "b": 0.0}, 1.0, over="leaf"),
            ValueError,
            "normal must not be zero, but is at 'b'",
        ),
        (lambda: projections.projected(INNER, 3), TypeError, "constraint must be a function"),
        (lambda: projections.projected(optax.sgd, SET), TypeError, "transformation must be"),
        (lambda: projections.projected(INNER, SET, eps=-1.0), ValueError, "eps must be a number"),
        (lambda: projections.project(SET, jnp.arange(3)), TypeError, "params must be floating"),
        (lambda: projections.project(SET, {"w": jnp.ones(2) * 1j}), TypeError, "hyperplane has no"),
        (
            lambda: projections.project(projections.box(0.0, 1.0), {"w": jnp.ones(2) * 1j}),
            TypeError,
            "at 'w' has dtype complex64",
        ),
        (
            lambda: projections.project(projections.l2_ball(1.0, 1j), jnp.ones(2)),
            TypeError,
            "center is complex",
        ),
        (
            lambda: projections.project(projections.box(jnp.zeros(3), 1.0), {"w": jnp.ones(2)}),
            ValueError,
            "lower of shape (3,) does not fit the parameter at 'w' of shape (2,)",
        ),
        (
            lambda: projections.project(projections.box({"v": 0.0}, 1.0), {"w": jnp.ones(2)}),
            ValueError,
            "lower must be a number, an array, or a tree like the parameters",
        ),
        (
            lambda: projections.project(SET, {"w": jnp.ones(2)}, {"w": jnp.array([1.0, -1.0])}),
            ValueError,
            "weights must not be negative, got [ 1. -1.] at 'w'",
        ),
        (
            lambda: projections.project(SET, jnp.ones(2), np.ones(2, bool)),
            TypeError,
            "weights must be a real number",
        ),
        (
            lambda: projections.project(SET, jnp.ones(2), jnp.nan),
            ValueError,
            "weights must not be NaN",
        ),
        (
            lambda: projections.project(lambda y, w: y[:1], jnp.ones(2)),
            ValueError,
            "the constraint must return a tree like its first argument",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_update_without_params():
    optimizer = projections.projected(INNER, SET)
    with pytest.raises(ValueError, match="projected needs the parameters"):
        optimizer.update(START, optimizer.init(START))


@pytest.mark.parametrize(
    ("params", "shapes"),
    [
        ({"w": jnp.ones(3)}, "{'w': (3,)}"),
        ({"w": jnp.ones(3), "b": jnp.ones(3)}, "{'b': (3,), 'w': (3,)}"),
    ],
)
def test_params_that_do_not_match_the_updates(params, shapes):
    optimizer = projections.projected(INNER, SET)
    message = f"updates, whose shapes are {{'b': (2,), 'w': (3,)}}; got {shapes}"
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.update(START, optimizer.init(START), params)


def test_no_moments_or_several():
    only_w = {"w": True, "b": False}
    for inner, message in (
        (
            optax.sgd(0.1),
            "found no amsgrad_jax.ScaleByAmsgradState or PackedAmsgradState in the state",
        ),
        (optax.masked(INNER, only_w), r"no moments of AMSGrad for 'b'.*optax.partition"),
        (optax.chain(INNER, optax.masked(INNER, only_w)), r"several states .* for 'w'"),
    ):
        optimizer = projections.projected(inner, SET)
        with pytest.raises(ValueError, match=message):
            jax.jit(optimizer.update)(START, optimizer.init(START), START)


@every_constraint
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_strict_promotion(name, dtype):
    y = jnp.asarray(np.linspace(-2, 2, SIZE), dtype)
    expected = project(CONSTRAINTS[name], y)
    with jax.numpy_dtype_promotion("strict"):
        got = project(CONSTRAINTS[name], y)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)


def test_strict_promotion_with_leaves_of_two_dtypes():
    with enable_x64(True):
        y = {"double": jnp.linspace(-1.0, 2.0, 3), "single": jnp.ones(2, "float32")}
        center = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), y)
        with jax.numpy_dtype_promotion("strict"):
            got = project(projections.l2_ball(1.0, center), y)
        whole = np.concatenate([y["double"], y["single"]])
        right = whole / np.linalg.norm(whole)
        np.testing.assert_allclose(got["double"], right[:3], rtol=1e-6)
        np.testing.assert_allclose(got["single"], right[3:], rtol=1e-6)
        assert (got["double"].dtype, got["single"].dtype) == ("float64", "float32")


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="explicit axes are new in later versions")
@every_constraint
def test_replicated_arguments_on_explicit_axes(name):
    mesh = jax.make_mesh((SIZE,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    split, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (["data"], [])
    )
    y = np.linspace(-2, 2, SIZE, dtype=np.float32)
    normal, lower = jax.device_put(NORMAL, whole), jax.device_put(LOWER, whole)
    make = {
        "box": lambda: projections.box(lower, UPPER),
        "l2_ball": lambda: projections.l2_ball(RADIUS, normal),
        "halfspace": lambda: projections.halfspace(normal, RADIUS),
        "hyperplane": lambda: projections.hyperplane(normal, RADIUS),
    }
    expected = project(
        projections.l2_ball(RADIUS, NORMAL) if name == "l2_ball" else CONSTRAINTS[name], y
    )
    with jax.set_mesh(mesh):
        constraint = make.get(name, lambda: CONSTRAINTS[name])()
        got = jax.jit(lambda y: project(constraint, y))(jax.device_put(y, split))
    assert got.sharding == split
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
