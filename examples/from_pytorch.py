"""From PyTorch: train there, save, and go on here as if nothing had happened."""

import tempfile

import jax
import jax.numpy as jnp
import optax
import torch
from sklearn.datasets import load_digits

from amsgrad_jax import interop

jax.config.update("jax_enable_x64", True)  # so that rounding does not drive the two apart
images, labels = load_digits(return_X_y=True)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
torch_optimizer = torch.optim.Adam(model.double().named_parameters(), lr=1e-3, amsgrad=True)


def train_in_torch(steps):
    for _ in range(steps):
        torch_optimizer.zero_grad()
        logits = model(torch.from_numpy(images))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        torch_optimizer.step()


def params_of(weights):  # with kernels (in, out), as in Flax; PyTorch has (out, in)
    arrays = {name: jnp.array(tensor.numpy()) for name, tensor in weights.items()}
    return {n: {"kernel": arrays[f"{n}.weight"].T, "bias": arrays[f"{n}.bias"]} for n in "02"}


def loss(params):
    hidden = jax.nn.relu(images @ params["0"]["kernel"] + params["0"]["bias"])
    logits = hidden @ params["2"]["kernel"] + params["2"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


train_in_torch(steps=100)
with tempfile.TemporaryDirectory() as folder:
    file = f"{folder}/checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": torch_optimizer.state_dict()}, file)
    params = params_of(torch.load(file)["model"])
    kernels = {"0.weight": "0/kernel", "2.weight": "2/kernel"}
    state, groups = interop.from_torch(
        file, params, key="optimizer", rename=kernels, transposes=interop.flax_transposes
    )
optimizer = interop.optimizer_of(groups, params)
opt_state = interop.set_moments(optimizer.init(params), state)
print(f"after {state.count} steps in PyTorch the loss is {loss(params):.6f}")

gradient, update = jax.jit(jax.grad(loss)), jax.jit(optimizer.update)
for _ in range(100):
    updates, opt_state = update(gradient(params), opt_state, params)
    params = optax.apply_updates(params, updates)
train_in_torch(steps=100)
expected = params_of(model.state_dict())
difference = max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), params, expected)))
print(f"after 100 more it is {loss(params):.6f}; PyTorch's parameters are {difference:.0e} away")
assert difference < 1e-10
