"""An interatomic potential: begun in PyTorch, finished in JAX.

A small message-passing network learns energies and forces of Cu-Ni-Al-Pd alloys, labelled by
ASE's EMT calculator. `interatomic_potential_torch.py`, beside this file, has the same network in
PyTorch and trains it as many potentials are trained: Huber losses, `Adam(amsgrad=True)` with weight
decay in one of two groups, clipping, an average of the parameters, ReduceLROnPlateau on a
validation loss. In the middle of the run it writes a checkpoint. This file carries all of it over:
parameters, average, optimizer, scheduler. Both continue, and end with the same forces.

    pip install '.[potential]' torch
    python examples/interatomic_potential.py --figure potential.png

Without PyTorch the run begins in JAX, and nothing is compared.
"""

import argparse
import functools
import importlib.util
import tempfile
from typing import Any, NamedTuple

import interatomic_potential_data as common
import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax import interop

# The network. The tree of parameters has the names that PyTorch has, with "/" for ".".


def init(seed):
    """Parameters to begin with, for runs that do not come from PyTorch."""
    rng = np.random.default_rng(seed)
    dense = lambda fan_out, fan_in: rng.uniform(-1, 1, (fan_out, fan_in)) / np.sqrt(fan_in)
    square = lambda: {"weight": dense(common.CHANNELS, common.CHANNELS)}
    biased = lambda: square() | {"bias": np.zeros(common.CHANNELS)}
    radial = lambda: {"0": {"weight": dense(common.CHANNELS, common.RADIAL)}, "2": square()}
    return {
        "embedding": {"weight": rng.normal(size=(len(common.LATTICE), common.CHANNELS))},
        "interactions": {n: {"radial": radial(), "mix": biased()} for n in "01"},
        "readout": {"0": biased(), "2": {"weight": dense(1, common.CHANNELS)}},
    }


def energy(params, positions, structure):
    """Energy of one structure."""
    neighbours, silu = structure.neighbours, jax.nn.silu
    vectors = positions[neighbours] + structure.shifts - positions[:, None]
    r = jnp.linalg.norm(vectors, axis=-1, keepdims=True) / common.CUTOFF
    radial = jnp.sin(jnp.pi * jnp.arange(1, common.RADIAL + 1) * r) / r * jnp.clip(1 - r**2, 0) ** 3
    h = params["embedding"]["weight"][structure.species]
    for layer in params["interactions"].values():
        weights = silu(radial @ layer["radial"]["0"]["weight"].T) @ layer["radial"]["2"]["weight"].T
        messages = jnp.sum(weights * h[neighbours], axis=1)
        h = h + silu(messages @ layer["mix"]["weight"].T + layer["mix"]["bias"])
    first, last = params["readout"]["0"], params["readout"]["2"]
    return jnp.sum(silu(h @ first["weight"].T + first["bias"]) @ last["weight"].T)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def predict(params, structure):
    """Energies and forces of structures."""
    value, gradient = jax.value_and_grad(energy, argnums=1)(params, structure.positions, structure)
    return value, -gradient


def loss_of(params, data):
    """Huber losses of energies per atom and of forces, the latter ten times."""
    energies, forces = predict(params, data)
    per_atom = optax.huber_loss((energies - data.energy) / common.ATOMS, delta=common.DELTA).mean()
    return per_atom + 10 * optax.huber_loss(forces, data.forces, delta=common.DELTA).mean()


# Training.


class Run(NamedTuple):
    params: Any
    average: Any
    opt_state: Any
    plateau: Any


def clip_as_torch(max_norm):
    """`clip_grad_norm_`, which divides by the norm plus 1e-6; `clip_by_global_norm` by the norm."""
    factor = lambda gradients: jnp.minimum(1, max_norm / (optax.tree.norm(gradients) + 1e-6))
    return optax.stateless(lambda gradients, _: optax.tree.scale(factor(gradients), gradients))


# PyTorch reduces after more than `patience` bad epochs, Optax after as many.
PLATEAU = optax.contrib.reduce_on_plateau(common.FACTOR, common.PATIENCE + 1, rtol=common.THRESHOLD)


@functools.partial(jax.jit, static_argnames="optimizer")
def train_epoch(run, optimizer, train, validation, batches):
    """One pass over the batches, then one look at the validation loss."""

    def step(run, batch):
        structures = jax.tree.map(lambda array: array[batch], train)
        gradients = jax.grad(loss_of)(run.params, structures)
        updates, opt_state = optimizer.update(gradients, run.opt_state, run.params)
        params = optax.apply_updates(run.params, optax.tree.scale(run.plateau.scale, updates))
        average = optax.incremental_update(params, run.average, 1 - common.EMA)
        return Run(params, average, opt_state, run.plateau), None

    run, _ = jax.lax.scan(step, run, batches)
    loss = loss_of(run.average, validation)
    _, plateau = PLATEAU.update({}, run.plateau, value=loss)
    return run._replace(plateau=plateau), loss


def carry_over(file, names):
    """The run in PyTorch's file, the optimizer that continues it, and its learning rate."""
    import torch

    saved = torch.load(file, weights_only=True)
    params, average = tree_of(saved["model"]), tree_of(saved["average"])
    state, groups = interop.from_torch(file, params, key="optimizer", names=names)
    optimizer = optax.chain(clip_as_torch(common.CLIP), interop.optimizer_of(groups, params))
    opt_state = interop.set_moments(optimizer.init(params), state)
    # The learning rate in the file is already reduced, so that the scale begins at 1.
    plateau = PLATEAU.init(params)
    plateau = plateau._replace(
        best_value=jnp.full_like(plateau.best_value, saved["lr_scheduler"]["best"]),
        plateau_count=jnp.full_like(plateau.plateau_count, saved["lr_scheduler"]["num_bad_epochs"]),
    )
    return Run(params, average, opt_state, plateau), optimizer, groups[0].arguments["learning_rate"]


def tree_of(weights):
    """A state dict as a tree: "readout.0.bias" is tree["readout"]["0"]["bias"]."""
    tree = {}
    for name, tensor in weights.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = jnp.array(tensor.numpy())
    return tree


def begin(dtype):
    """A run that begins here, with the optimizer that PyTorch's groups make, and its optimizer."""
    params = jax.tree.map(lambda array: jnp.asarray(array, dtype), init(seed=0))
    decayed = lambda path, _: path[0].key == "interactions" and path[-1].key == "weight"
    optimizer = optax.chain(
        clip_as_torch(common.CLIP),
        optax.add_decayed_weights(common.DECAY, jax.tree_util.tree_map_with_path(decayed, params)),
        amsgrad_jax.amsgrad(common.LEARNING_RATE),
    )
    return Run(params, params, optimizer.init(params), PLATEAU.init(params)), optimizer


def draw(file, losses, before, ours, forces, differences):
    """Both continuations over each other."""
    import matplotlib.pyplot as plt

    figure, (curve, parity, gap) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    epochs = np.arange(1, len(losses) + 1)
    curve.plot(epochs, losses, color="#E69F00", linewidth=5, label="PyTorch")
    curve.plot(epochs[before:], ours, color="#0072B2", label="JAX, carried over")
    curve.axvline(before, color="gray", linewidth=0.8)
    curve.set(xlabel="epoch", ylabel="validation loss", yscale="log", title="One run, two ends")
    curve.legend()
    emt, theirs, here = (np.ravel(array) for array in forces)
    parity.plot(emt, theirs, ".", color="#E69F00", markersize=8, label="PyTorch")
    parity.plot(emt, here, ".", color="#0072B2", markersize=2, label="JAX")
    parity.set(xlabel="EMT, eV/Å", ylabel="network, eV/Å", title="Validation forces at the end")
    parity.legend()
    gap.plot(epochs[before:], differences, color="#0072B2")
    gap.set(xlabel="epoch", ylabel="largest / the forces' scale", yscale="log")
    gap.set(title="Difference of the forces")
    figure.savefig(file, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--figure", help="a file for the picture of both continuations")
    parser.add_argument("--quick", action="store_true", help="fewer structures and epochs")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", arguments.dtype == "float64")
    size, before, after = (176, 6, 13) if arguments.quick else (400, 10, 10)

    data = common.make_structures(size)
    cast = lambda array: jnp.asarray(array, arguments.dtype if array.dtype == float else int)
    validation = jax.tree.map(lambda array: cast(array[: common.VALIDATION]), data)
    train = jax.tree.map(lambda array: cast(array[common.VALIDATION :]), data)
    theirs, losses, ours, differences = None, [], [], []
    if importlib.util.find_spec("torch"):
        from interatomic_potential_torch import Training

        theirs = Training(data, arguments.dtype)
        losses = [theirs.epoch(number) for number in range(before)]
        with tempfile.TemporaryDirectory() as folder:
            theirs.save(f"{folder}/checkpoint.pt")
            run, optimizer, rate = carry_over(
                f"{folder}/checkpoint.pt", interop.names_of(theirs.optimizer, theirs.model)
            )
        print(f"{before} epochs in PyTorch: validation loss {losses[-1]:.5f}")
    else:
        print("PyTorch is not installed: the run begins in JAX, and nothing is compared")
        run, optimizer = begin(arguments.dtype)
    for number in range(len(losses), before + after):
        batches = common.batches_of(number, len(train.energy))
        run, loss = train_epoch(run, optimizer, train, validation, batches)
        ours.append(float(loss))
        _, forces = predict(run.average, validation)
        if theirs:  # continues, too
            losses.append(theirs.epoch(number))
            difference = abs(forces - theirs.forces()).max() / validation.forces.std()
            differences.append(float(difference))
    error = 1000 * abs(forces - validation.forces).mean()
    print(f"{len(ours)} epochs in JAX: validation loss {loss:.5f}, forces {error:.1f} meV/Å off")
    if theirs:
        print(f"as many more in PyTorch: validation loss {losses[-1]:.5f}")
        steps = after * len(batches)
        print(f"after {steps} steps their forces differ by {difference:.0e} of the forces' scale")
        rates = theirs.optimizer.param_groups[0]["lr"], rate * run.plateau.scale
        print("learning rates at the end: {:g} in PyTorch, {:g} in JAX".format(*rates))
    if theirs and arguments.figure:
        three = validation.forces, theirs.forces(), forces
        draw(arguments.figure, losses, before, ours, three, differences)


if __name__ == "__main__":
    main()
