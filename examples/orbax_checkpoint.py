"""Orbax: save, restore on one device and on two, and go on to the same bits."""

import tempfile

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad

jax.config.update("jax_num_cpu_devices", 2)  # virtual ones, if there is no accelerator
images = jnp.asarray(load_digits().images / 16, jnp.float32)
params = jnp.zeros((8, 8))  # on their way to the median image
optimizer = amsgrad(learning_rate=1e-2)


def step(run, image):
    updates, state = optimizer.update(jnp.sign(run[0] - image), run[1])
    return (run[0] + updates, state), None  # no sum over pixels: two devices would reorder it


def target(devices):  # what to restore, and where: rows over devices, the count everywhere
    def place(leaf):
        sharding = NamedSharding(Mesh(devices, "rows"), PartitionSpec(*["rows"][: leaf.ndim]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, (params, jax.eval_shape(optimizer.init, params)))


halfway, _ = jax.lax.scan(step, (params, optimizer.init(params)), images[:900])
finished, _ = jax.lax.scan(step, halfway, images[900:])
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(f"{folder}/halfway", halfway)
    for devices in jax.devices()[:1], jax.devices()[:2]:
        restored = checkpointer.restore(f"{folder}/halfway", target(devices))
        continued, _ = jax.lax.scan(step, restored, images[900:])
        assert jax.tree.all(jax.tree.map(jnp.array_equal, continued, finished))
        print(type(restored[1][0]).__name__, "on", restored[0].devices(), "ends with equal bits")
