"""Flax Linen: the transformation is the `tx` of a `TrainState`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

from amsgrad_jax import amsgrad

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)

model = linen.Sequential([linen.Dense(32), linen.relu, linen.Dense(10)])
params = model.init(jax.random.key(0), images)["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=amsgrad(learning_rate=1e-2))


@jax.jit
def step(state):
    def loss(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


for number in range(200):
    state, value = step(state)
    if number % 50 == 0:
        print(f"step {number:3}: loss {value:.3f}")
print(f"at the end: loss {value:.3f}")
assert value < 0.1
