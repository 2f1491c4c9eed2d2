"""What a newcomer tries first; run against what was installed, with nothing else around."""

import importlib.metadata
import importlib.resources
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import optax

import amsgrad_jax

assert "site-packages" in amsgrad_jax.__file__, amsgrad_jax.__file__
assert (pathlib.Path(amsgrad_jax.__file__).parent / "py.typed").exists()
assert (importlib.resources.files("amsgrad_jax.demo") / "checkpoint.npz").is_file()
metadata = importlib.metadata.metadata("amsgrad_jax")
assert amsgrad_jax.__version__ == metadata["Version"]
relative = re.findall(r"\]\((?!https?://)[^)]*\)", metadata.get_payload())
assert not relative, f"links of the description that hold in the repository only: {relative}"
assert not {"torch", "keras", "matplotlib", "tqdm", "sklearn"} & set(sys.modules)

optimizer = amsgrad_jax.amsgradw(0.1)
params = jnp.array([3.0, -2.0])
state = optimizer.init(params)
for _ in range(200):
    gradients = jax.grad(lambda x: jnp.sum(x**2))(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
assert jnp.max(jnp.abs(params)) < 0.05, params
print(f"amsgrad_jax {amsgrad_jax.__version__} as installed: parameters {params}")
