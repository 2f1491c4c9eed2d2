"""Trains in PyTorch and writes the checkpoint of notebooks/03_from_pytorch.ipynb; needs torch.

It holds what a checkpoint of torch.save would, as arrays that numpy can read: the model's
and the optimizer's state dict after 200 steps, and PyTorch's losses of 200 steps more.
"""

import importlib
import json
import pathlib

import numpy as np

import amsgrad_jax.demo

PATH = pathlib.Path(amsgrad_jax.demo.__file__).with_name("checkpoint.npz")


def main() -> None:
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((64, 40)), rng.standard_normal((64, 10))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 20), torch.nn.ReLU(), torch.nn.Linear(20, 10))
    optimizer = torch.optim.Adam(model.double().named_parameters(), lr=1e-3, amsgrad=True)

    def train(steps):
        for _ in range(steps):
            loss = torch.sum((model(torch.from_numpy(inputs)) - torch.from_numpy(targets)) ** 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    losses = list(train(200))
    arrays = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    state_dict = optimizer.state_dict()
    for number, state in state_dict["state"].items():
        arrays |= {f"{number}.{name}": tensor.numpy().copy() for name, tensor in state.items()}
    losses += train(200)
    np.savez_compressed(
        PATH,
        inputs=inputs,
        targets=targets,
        losses=losses,
        param_groups=json.dumps(state_dict["param_groups"]),
        torch_version=torch.__version__,
        **arrays,
    )


if __name__ == "__main__":
    main()
