"""Plain JAX: a network with one hidden layer learns handwritten digits."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)

keys = jax.random.split(jax.random.key(0))
params = [
    {"kernel": jax.random.normal(keys[0], (64, 32)) / 8, "bias": jnp.zeros(32)},
    {"kernel": jax.random.normal(keys[1], (32, 10)) / 6, "bias": jnp.zeros(10)},
]
optimizer = amsgrad(learning_rate=1e-2)
state = optimizer.init(params)


def loss(params, images, labels):
    hidden = jax.nn.relu(images @ params[0]["kernel"] + params[0]["bias"])
    logits = hidden @ params[1]["kernel"] + params[1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def step(params, state):
    value, gradients = jax.value_and_grad(loss)(params, images, labels)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


for number in range(200):
    params, state, value = step(params, state)
    if number % 50 == 0:
        print(f"step {number:3}: loss {value:.3f}")
print(f"at the end: loss {value:.3f}")
assert value < 0.1
