"""One table: every variant of the optimizer through everything Optax users do with one."""

import functools
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from tests.variants import FULL_VARIANTS, VARIANTS, enable_x64

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_full_variant = pytest.mark.parametrize("variant", FULL_VARIANTS, ids=str)
TARGET = {"w": np.float32([1, -1, 1]), "b": np.float32(0.5)}
START = {"w": jnp.float32([-1, 10, 1]), "b": jnp.float32(2)}


def distance(params):
    return sum(jnp.sum(jnp.abs(params[name] - TARGET[name]) ** 2) for name in TARGET)


def step(optimizer, params, state, loss=distance, **extra):
    value, gradients = jax.value_and_grad(loss)(params)
    if extra:
        extra = {"value": value}
    updates, state = optimizer.update(gradients, state, params, **extra)
    return optax.apply_updates(params, updates), state


def train(optimizer, steps=5, **extra):
    """Returns params and state after some steps of ``distance``, under jit."""
    one = jax.jit(lambda params, state: step(optimizer, params, state, **extra))
    params, state = START, optimizer.init(START)
    for _ in range(steps):
        params, state = one(params, state)
    return params, state


@functools.cache
def trained(variant, steps=5):
    """What several tests compare with."""
    return train(variant(), steps)


def follow(optimizer, gradients):
    """Returns the params after a sequence of given gradients."""
    params, state = START, optimizer.init(START)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def amsgrad_state(state):
    """The one state of AMSGrad in the state of a chain."""
    kinds = amsgrad_jax.ScaleByAmsgradState, amsgrad_jax.PackedAmsgradState
    is_ours = lambda node: isinstance(node, kinds)
    (found,) = (leaf for leaf in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(leaf))
    return found


def assert_same(got, want):
    """Equal up to the last bits, which XLA may round differently in another program."""
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-7)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


# It optimises.


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("problem", ["parabola", "rosenbrock"])
@every_variant
def test_optimises(variant, problem, dtype):
    if problem == "parabola":
        start, end, learning_rate, steps = [-1.0, 10.0, 1.0], [1.0, -1.0, 1.0], 1e-1, 1000
        loss = lambda z: jnp.sum(jnp.abs(z - jnp.asarray(end)) ** 2)
    else:
        start, end, learning_rate, steps = [0.0, 0.0], [1.0, 1.0], 1e-2, 5000
        loss = lambda z: jnp.sum(jnp.abs(z[0] - 1) ** 2 + 100 * jnp.abs(z[1] - z[0] ** 2) ** 2)
    kwargs = {"weight_decay": 1e-5} if variant.factory == "amsgradw" else {}
    optimizer = variant(learning_rate, **kwargs)
    if variant.storage == "packed" and dtype == "complex64":
        optimizer = optax.contrib.split_real_and_imaginary(optimizer)

    @jax.jit
    def run(params):
        def body(_, carry):
            params, state = carry
            gradients = jax.tree.map(jnp.conj, jax.grad(loss)(params))
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, body, (params, optimizer.init(params)))[0]

    np.testing.assert_allclose(run(jnp.asarray(start, dtype)), end, rtol=0.03, atol=0.03)


# It keeps dtypes, trees and types.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "complex64"])
@every_variant
def test_keeps_dtypes(variant, dtype):
    if variant.storage == "packed" and dtype == "complex64":
        pytest.skip("a word has no room for complex moments; tests/test_storage.py")
    with enable_x64(dtype == "float64"):
        params = {"w": jnp.ones(3, dtype), "b": jnp.ones((), dtype)}
        optimizer = variant()
        state = optimizer.init(params)
        ours = amsgrad_state(state)
        wide = jnp.promote_types(dtype, jnp.float32)
        real = jnp.finfo(wide).dtype
        expected = {"full": [wide, real, real], "packed": ["uint32"]}
        assert [leaf["w"].dtype for leaf in ours[1:]] == expected[variant.storage]
        updates, after = jax.jit(optimizer.update)(params, state, params)
        chex.assert_trees_all_equal_dtypes(updates, params)
        assert types(after) == types(state)
        assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(updates))


class Pair(NamedTuple):
    left: object
    right: object


@every_variant
def test_takes_any_tree(variant):
    params = {
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "nested": [Pair(jnp.ones(()), (jnp.ones(2), None)), []],
    }
    optimizer = variant()
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert types(after) == types(state)
    chex.assert_trees_all_equal_structs(params, *amsgrad_state(after)[1:])


@every_variant
def test_takes_equinox_modules(variant):
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    xs, ys = jax.random.normal(jax.random.key(1), (8, 2)), jnp.ones((8, 1))
    loss = lambda model: jnp.mean((jax.vmap(model)(xs) - ys) ** 2)
    optimizer = variant()
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    before = loss(model)

    @eqx.filter_jit
    def one(model, state):
        gradients = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(10):
        model, state = one(model, state)
    assert loss(model) < before


@every_variant
def test_initialises_from_shapes_alone(variant):
    optimizer = variant()
    shapes = jax.eval_shape(lambda: START)
    abstract = jax.eval_shape(optimizer.init, shapes)
    concrete = optimizer.init(START)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, concrete)
    chex.assert_trees_all_equal(optimizer.init(shapes), concrete)


@every_variant
def test_init_and_update_agree_in_structure_dtype_and_weak_type(variant):
    optimizer = variant()
    params = {"weak": jnp.asarray(1.0), "strong": jnp.ones(2)}
    assert params["weak"].weak_type
    state = optimizer.init(params)
    _, after = optimizer.update(params, state, params)
    chex.assert_trees_all_equal_structs(state, after)
    assert types(state) == types(after)


# It compiles once, and means the same however it is run.


@every_variant
def test_compiles_once_in_a_thousand_steps(variant):
    optimizer = variant(optax.linear_schedule(1e-2, 1e-3, 1000))
    traces = []

    @jax.jit
    def one(params, state):
        traces.append(None)
        return step(optimizer, params, state)

    params, state = START, optimizer.init(START)
    for _ in range(1000):
        params, state = one(params, state)
    assert amsgrad_state(state).count == 1000
    assert len(traces) == 1


@every_variant
def test_eager_equals_jit(variant):
    optimizer = variant()
    params, state = START, optimizer.init(START)
    for _ in range(5):
        params, state = step(optimizer, params, state)
    assert_same((params, state), trained(variant))


@every_variant
def test_scan_equals_a_loop(variant):
    optimizer = variant()
    carry, _ = jax.lax.scan(
        lambda carry, _: (step(optimizer, *carry), None),
        (START, optimizer.init(START)),
        length=5,
    )
    assert_same(carry, trained(variant))


@every_variant
def test_donation_leaves_no_copy(variant):
    optimizer = variant()
    params = {"w": jnp.ones((256, 128)), "b": jnp.ones(128)}
    state = jax.jit(optimizer.init)(params)
    gradients = jax.tree.map(jnp.ones_like, params)

    def one(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    one = jax.jit(one, donate_argnums=(0, 1))
    memory = one.lower(params, state, gradients).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes == held
    assert memory.temp_size_in_bytes < 1024  # scalars
    one(params, state, gradients)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


@every_variant
def test_vmaps_over_hyperparameters(variant):
    settings = [
        dict(learning_rate=1e-3, b1=0.0, b2=0.5, eps=0.0, eps_root=1e-2),
        dict(learning_rate=1e-1, b1=0.9, b2=0.99, eps=1e-2, eps_root=0.0),
    ]
    gradients = [jax.tree.map(lambda p, k=k: k * p, START) for k in (1.0, -3.0, 0.5)]
    stacked = jax.tree.map(lambda *values: jnp.asarray(values), *settings)
    together = jax.jit(jax.vmap(lambda kwargs: follow(variant(**kwargs), gradients)))(stacked)
    for i, kwargs in enumerate(settings):
        # float32 holds 1 - 0.99 with a relative error of 1e-6 only.
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], together),
            follow(variant(**kwargs), gradients),
            rtol=2e-5,
        )


@every_variant
def test_takes_hyperparameters_of_every_kind(variant):
    floats = dict(learning_rate=0.125, b1=0.5, b2=0.75, eps=0.125, eps_root=0.0)

    def run(wrap, values=floats):
        optimizer = variant(**{name: wrap(value) for name, value in values.items()})
        return optimizer.update(START, optimizer.init(START), START)[0]

    want = run(lambda value: value)
    assert_same(jax.jit(lambda traced: run(lambda value: value, traced))(floats), want)
    for wrap in (np.float64, np.asarray, jnp.asarray, optax.constant_schedule):
        assert_same(run(wrap), want)


@every_variant
def test_schedule_of_b1_is_called_with_the_steps_taken(variant):
    rates = [0.9, 0.5, 0.0]
    scheduled = variant(b1=lambda count: jnp.asarray(rates)[count])
    gradients = jax.tree.map(jnp.ones_like, START)
    state = scheduled.init(START)
    for b1 in rates:
        want, _ = variant(b1=b1).update(gradients, state, START)
        got, state = scheduled.update(gradients, state, START)
        chex.assert_trees_all_close(got, want, rtol=2e-6)


# One can differentiate through it.


@every_full_variant
def test_derivatives_through_five_steps_are_finite(variant):
    def loss(params):
        return jnp.sum(params["w"] ** 2)  # "b" has the gradient zero

    def unrolled(params, learning_rate, eps):
        optimizer = variant(learning_rate, eps=eps)
        state = optimizer.init(params)
        for _ in range(5):
            params, state = step(optimizer, params, state, loss)
        return distance(params)

    derive = jax.jit(jax.grad(unrolled, argnums=(0, 1, 2)))
    for eps in (0.0, 1e-8):
        by_params, by_learning_rate, by_eps = derive(START, 0.1, eps)
        chex.assert_tree_all_finite((by_params, by_learning_rate, by_eps))
        assert by_learning_rate != 0
        # Nothing but weight decay moves b, from 2 towards 0; its target is 0.5.
        decay = (1 - 0.1 * 1e-2) ** 5 if variant.factory == "amsgradw" else 1
        np.testing.assert_allclose(by_params["b"], 2 * (2 * decay - 0.5) * decay, rtol=1e-5)


# It composes.


@every_variant
def test_inject_hyperparams(variant):
    factory = functools.partial(
        optax.inject_hyperparams(getattr(amsgrad_jax, variant.factory)),
        **variant.settings,
    )
    schedule = optax.linear_schedule(1e-1, 1e-2, 5)
    params, state = train(factory(learning_rate=schedule, b2=0.9, eps=0.125))
    want, _ = train(variant(schedule, b2=0.9, eps=0.125))
    assert_same(params, want)
    assert set(state.hyperparams) >= {"learning_rate", "b1", "b2", "eps", "eps_root"}
    fixed = factory(learning_rate=0.0)
    updates, _ = fixed.update(jax.tree.map(jnp.ones_like, START), fixed.init(START), START)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates))


@every_variant
def test_masked(variant):
    optimizer = optax.masked(variant(), {"w": True, "b": False})
    gradients = jax.tree.map(jnp.ones_like, START)
    updates, _ = optimizer.update(gradients, optimizer.init(START), START)
    assert updates["b"] == gradients["b"]
    alone = {"w": START["w"]}
    want, _ = variant().update({"w": gradients["w"]}, variant().init(alone), alone)
    assert_same({"w": updates["w"]}, want)


@every_variant
def test_partition(variant):
    fast, slow = variant(1e-1), variant(1e-3, b2=0.9)
    params, _ = train(optax.partition({"f": fast, "s": slow}, {"w": "f", "b": "s"}))
    assert_same(params, {"w": train(fast)[0]["w"], "b": train(slow)[0]["b"]})


@every_variant
def test_multi_steps(variant):
    optimizer = optax.MultiSteps(variant(), every_k_schedule=2)
    update = jax.jit(optimizer.update)
    state, params = optimizer.init(START), START
    means = [jax.tree.map(lambda p, k=k: jnp.full_like(p, k), START) for k in (1, 2, 3)]
    for mean in means:
        for share in (0.5, 1.5):
            gradients = jax.tree.map(lambda g, share=share: share * g, mean)
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
    assert_same(params, follow(variant(), means))


@every_variant
def test_apply_if_finite(variant):
    good = jax.tree.map(jnp.ones_like, START)
    bad = jax.tree.map(lambda g: g * jnp.nan, good)
    optimizer = optax.apply_if_finite(variant(), max_consecutive_errors=5)
    update = jax.jit(optimizer.update)
    state, params = optimizer.init(START), START
    for gradients in (good, bad, good):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert state.total_notfinite == 1
    assert_same(params, follow(variant(), [good, good]))


@every_full_variant  # words are rounded by other bits when their leaf has another name
def test_flatten(variant):
    flat_params, flat_state = train(optax.flatten(variant()))
    assert_same(flat_params, trained(variant)[0])
    assert amsgrad_state(flat_state).nu_max.shape == (4,)


@every_variant
def test_lookahead(variant):
    optimizer = optax.lookahead(variant(), sync_period=3, slow_step_size=0.5)
    update = jax.jit(optimizer.update)
    params = optax.LookaheadParams.init_synced(START)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = update(jax.grad(distance)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    fast, _ = trained(variant, steps=3)
    assert_same(params.slow, jax.tree.map(lambda a, b: (a + b) / 2, START, fast))
    assert_same(params.fast, params.slow)


@every_variant
def test_schedule_free(variant):
    optimizer = optax.contrib.schedule_free(variant(0.1, b1=0.0), learning_rate=0.1, b1=0.9)
    params, state = train(optimizer, steps=200)
    final = optax.contrib.schedule_free_eval_params(state, params)
    assert distance(final) < 0.2 * distance(START)


@every_variant
def test_reduce_on_plateau(variant):
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e9)
    optimizer = optax.chain(variant(), plateau)
    params, state = train(optimizer, steps=5, value=True)
    assert state[-1].scale < 1  # atol makes every step a plateau
    assert distance(params) < distance(START)


@every_variant
def test_named_chain_and_tree_utilities(variant):
    optimizer = optax.named_chain(("clip", optax.clip(1.0)), ("main", variant()))
    params, state = train(optimizer)
    assert amsgrad_state(state["main"]).count == 5

    chain = variant(1.0)  # a number for a learning rate: the chain has one count
    _, state = train(chain)
    field = amsgrad_state(state)._fields[-1]
    stored = optax.tree.get(state, field)
    chex.assert_trees_all_equal(stored, amsgrad_state(state)[-1])
    chex.assert_trees_all_equal_structs(stored, params)
    assert optax.tree.get(state, "count") == 5
    state = optax.tree.set(state, count=jnp.asarray(7, jnp.int32))
    assert amsgrad_state(state).count == 7
    doubled = amsgrad_state(optax.tree.map_params(chain, lambda leaf: 2 * leaf, state))
    chex.assert_trees_all_equal(doubled[-1], jax.tree.map(lambda leaf: 2 * leaf, stored))
    assert doubled.count == 7


@every_variant
def test_ignores_extra_arguments(variant):
    optimizer = variant()
    gradients = jax.tree.map(jnp.ones_like, START)
    state = optimizer.init(START)
    plain = optimizer.update(gradients, state, START)
    chex.assert_trees_all_equal(optimizer.update(gradients, state, START, value=1.0), plain)


# It runs on more than this machine's one CPU device.


@every_variant
def test_keeps_the_sharding_of_parameters(variant):
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.arange(8.0), split)}
    optimizer = variant()
    state = optimizer.init(params)
    for moments in amsgrad_state(state)[1:]:
        assert moments["w"].sharding.is_equivalent_to(split, 1)
    one = jax.jit(lambda *args: step(optimizer, *args, loss=lambda p: jnp.sum(p["w"] ** 2)))
    for _ in range(2):
        params, state = one(params, state)
    assert params["w"].sharding.is_equivalent_to(split, 1)
    for moments in amsgrad_state(state)[1:]:
        assert moments["w"].sharding.is_equivalent_to(split, 1)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@every_variant
def test_lowers_for_other_platforms(variant, platform):
    optimizer = variant()
    state = optimizer.init(START)
    exported = jax.export.export(
        jax.jit(lambda *args: step(optimizer, *args)), platforms=[platform]
    )(START, state)
    assert exported.platforms == (platform,)
    assert len(exported.mlir_module_serialized) > 0
