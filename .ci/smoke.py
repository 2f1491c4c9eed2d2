"""What a newcomer tries first; run against the installed wheel, with nothing else around."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

import amsgrad_jax

assert "site-packages" in amsgrad_jax.__file__, amsgrad_jax.__file__
assert (pathlib.Path(amsgrad_jax.__file__).parent / "py.typed").exists()
assert not {"torch", "keras", "matplotlib", "tqdm", "sklearn"} & set(sys.modules)

optimizer = amsgrad_jax.amsgradw(0.1)
params = jnp.array([3.0, -2.0])
state = optimizer.init(params)
for _ in range(200):
    gradients = jax.grad(lambda x: jnp.sum(x**2))(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
assert jnp.max(jnp.abs(params)) < 0.05, params
print(f"amsgrad_jax {amsgrad_jax.__version__} from the wheel: parameters {params}")
