"""Flax NNX: `nnx.Optimizer` takes the transformation as it is."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.output = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        return self.output(jax.nn.relu(self.hidden(images)))


def loss(model):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def step(model, optimizer):
    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, amsgrad(learning_rate=1e-2), wrt=nnx.Param)
values = [step(model, optimizer) for _ in range(200)]
print(f"loss {values[0]:.3f} at the start, {values[-1]:.3f} at the end")
assert values[-1] < 0.1
