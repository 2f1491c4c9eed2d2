"""What the pages say in prose, where no other test shows it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amsgrad_jax import amsgrad, convert_storage, interop, remedies, scale_by_amsgrad

STORAGES = {"full": "packed", "packed": "full"}  # and the other one


def equal(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other)
    )


def test_three_conventions_share_one_state():
    gradients = jax.random.normal(jax.random.key(0), (100, 7))
    states = []
    for convention in ("pytorch", "keras", "paper"):
        transformation = scale_by_amsgrad(convention=convention)
        state = transformation.init(gradients[0])
        for gradient in gradients:
            _, state = transformation.update(gradient, state)
        states.append(state)
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def by_name(template, saved):
    fill = lambda path, _: jnp.asarray(saved[jax.tree_util.keystr(path)])
    return jax.tree_util.tree_map_with_path(fill, template)


def with_npz(state, file):
    np.savez(file, **names(state))
    return lambda template: by_name(template, np.load(file))


def with_safetensors(state, file):
    flax = pytest.importorskip("safetensors.flax")
    flax.save_file(names(state), file)
    return lambda template: by_name(template, flax.load_file(file))


def with_msgpack(state, file):
    serialization = pytest.importorskip("flax.serialization")
    file.write_bytes(serialization.to_bytes(state))
    return lambda template: serialization.from_bytes(template, file.read_bytes())


def with_equinox(state, file):
    eqx.tree_serialise_leaves(file, state)
    return functools.partial(eqx.tree_deserialise_leaves, file)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("save", [with_npz, with_safetensors, with_msgpack, with_equinox])
def test_formats_restore_a_state_bitwise_and_refuse_the_other_storage(save, storage, tmp_path):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3, jnp.bfloat16)}

    def chain(storage):
        optimizer = amsgrad(optax.constant_schedule(1e-3), storage=storage)
        return optax.chain(optax.clip_by_global_norm(1.0), optimizer)

    optimizer = chain(storage)
    _, state = optimizer.update(params, optimizer.init(params))
    suffix = {"with_npz": ".npz", "with_equinox": ".eqx"}.get(save.__name__, ".bin")
    restore = save(state, tmp_path / f"state{suffix}")
    assert equal(restore(optimizer.init(params)), state)
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        restore(chain(STORAGES[storage]).init(params))


@pytest.mark.parametrize("storage", STORAGES)
def test_states_of_nnx_are_reset_converted_and_assigned(storage):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2))) ** 2))(model)
    optimizer = nnx.Optimizer(model, amsgrad(1e-3, storage=storage), wrt=nnx.Param)
    optimizer.update(model, gradients)
    optimizer.opt_state = remedies.reset_max(optimizer.opt_state)
    optimizer.update(model, gradients)
    other = STORAGES[storage]
    converted = nnx.Optimizer(model, amsgrad(1e-3, storage=other), wrt=nnx.Param)
    converted.opt_state = convert_storage(optimizer.opt_state, other)
    nnx.jit(lambda model, optimizer: optimizer.update(model, gradients))(model, converted)
    assert int(jax.tree.leaves(converted.opt_state[0].count)[0]) == 3


@pytest.mark.parametrize("storage", STORAGES)
def test_states_are_averaged_as_numbers(storage):
    params = {"w": jnp.ones(3)}
    optimizer = amsgrad(1e-3, storage=storage)
    states = [
        optimizer.update({"w": scale * jnp.ones(3)}, optimizer.init(params))[1]
        for scale in (1.0, 3.0)
    ]
    moments = [interop.get_moments(state, params) for state in states]
    average = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *moments)
    state = interop.set_moments(states[0], average._replace(count=moments[0].count))
    assert jax.tree.structure(state) == jax.tree.structure(states[0])
    got = interop.get_moments(state, params)
    np.testing.assert_allclose(got.mu["w"], 0.2, rtol=0.07)
    np.testing.assert_allclose(got.nu["w"], 0.005, rtol=0.07)
    np.testing.assert_allclose(got.nu_max["w"], 0.005, rtol=0.07)


def test_averages_over_workers_in_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("workers",))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("workers")
    optimizer = amsgrad(1e-3, storage="packed")

    def step(gradients):
        _, state = optimizer.update(gradients[0], optimizer.init(gradients[0]))
        moments = convert_storage(state, "full")[0]
        mean = lambda tree: jax.lax.pmean(tree, "workers")
        moments = moments._replace(
            mu=mean(moments.mu), nu=mean(moments.nu), nu_max=mean(moments.nu_max)
        )
        return convert_storage(moments, "packed").packed

    shard_map = jax.shard_map if hasattr(jax, "shard_map") else None
    if shard_map is None:
        from jax.experimental.shard_map import shard_map
    gradients = jnp.arange(1.0, 5.0)[:, None] * jnp.ones((4, 3))
    words = jax.jit(shard_map(step, mesh=mesh, in_specs=split, out_specs=whole))(gradients)
    assert words.shape == (3,)
    assert words.dtype == jnp.uint32
