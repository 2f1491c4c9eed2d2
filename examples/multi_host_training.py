"""What each process of multi_host.py does: it trains together with the others.

The optimizer's state is split over all devices (ZeRO), and a gradient is added in the same order
on any number of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from multi_host import BLOCKS
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad, sharding


def join(address, processes, process, devices):
    """Makes this process one of several, with virtual devices of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, process)


def initial(optimizer):
    kernels = map(jax.random.normal, jax.random.split(jax.random.key(0)), ((64, 32), (32, 10)))
    params = [{"kernel": kernel / 8, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]
    return params, optimizer.init(params)


def loss(params, images, labels):
    hidden = jax.nn.relu(images @ params[0]["kernel"] + params[0]["bias"])
    logits = hidden @ params[1]["kernel"] + params[1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def rows(number):  # by the number of the step alone, so that nothing of it has to be saved
    return np.random.default_rng([0, number]).choice(1797, (BLOCKS, 16), replace=False)


def train(folder, steps, save_every, storage):
    images, labels = load_digits(return_X_y=True)
    images, labels = np.float32(images / 16), np.int32(labels)
    optimizer = amsgrad(learning_rate=1e-2, storage=storage)
    mesh = Mesh(np.array(jax.devices()), "data")
    at = functools.partial(NamedSharding, mesh)
    all_of_it, split = PartitionSpec(), PartitionSpec("data")
    params, state = jax.eval_shape(lambda: initial(optimizer))
    placed = sharding.zero1_shardings(state, params, mesh).shardings
    shardings = jax.tree.map(lambda _: at(all_of_it), params), placed
    of_moments = placed[0][1]  # of mu, or of the packed words: all are split alike

    def of_blocks(params, images, labels):  # one by one: the same program on any devices
        return jax.lax.map(lambda block: jax.value_and_grad(loss)(params, *block), (images, labels))

    def mean(blocks, like):
        # Each device gets its part of every block's gradient: as many bytes as in a
        # reduce-scatter, but added in an order that does not depend on the devices.
        parts = at(PartitionSpec(None, *like.spec))
        return functools.reduce(jnp.add, jax.lax.with_sharding_constraint(blocks, parts)) / BLOCKS

    @functools.partial(jax.jit, out_shardings=(shardings, at(all_of_it)), donate_argnums=0)
    def step(run, *batch):
        params, state = run
        batch_specs = dict(in_specs=(all_of_it, split, split), out_specs=split)
        blocks = jax.shard_map(of_blocks, mesh=mesh, check_vma=False, **batch_specs)
        value, gradients = blocks(params, *batch)
        gradients = jax.tree.map(mean, gradients, of_moments)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value.mean()

    def on_devices(batch):
        return jax.make_array_from_callback(batch.shape, at(split), batch.__getitem__)

    options = ocp.CheckpointManagerOptions(
        save_interval_steps=save_every, max_to_keep=2, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(folder.resolve() / storage, options=options) as manager:
        run = jax.jit(lambda: initial(optimizer), out_shardings=shardings)()
        first = manager.latest_step() or 0
        if first:
            run = manager.restore(first, args=ocp.args.StandardRestore(run))
        print(f"process {jax.process_index()} goes on after step {first}", flush=True)
        for number in range(first, steps):
            chosen = rows(number)
            run, value = step(run, on_devices(images[chosen]), on_devices(labels[chosen]))
            todo = ocp.args.StandardSave(run)
            saved = manager.save(number + 1, args=todo, force=number + 1 == steps)
            if saved and jax.process_index() == 0:
                print(f"step {number + 1}: loss {value:.3f}", flush=True)
