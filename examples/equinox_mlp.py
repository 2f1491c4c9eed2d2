"""Equinox: a module is a tree of parameters once `eqx.filter` has taken the rest out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)

model = eqx.nn.MLP(64, 10, width_size=32, depth=1, key=jax.random.key(0))
optimizer = amsgrad(learning_rate=1e-2)
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))


def loss(model):
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@eqx.filter_jit
def step(model, state):
    value, gradients = eqx.filter_value_and_grad(loss)(model)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(model, updates), state, value


for number in range(200):
    model, state, value = step(model, state)
    if number % 50 == 0:
        print(f"step {number:3}: loss {value:.3f}")
print(f"at the end: loss {value:.3f}")
assert value < 0.1
