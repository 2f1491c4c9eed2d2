"""The experiments of the paper's section 5, on a data set that fits into a minute.

Adam and AMSGrad learn scikit-learn's 1797 handwritten digits: by logistic regression with
the step size alpha / sqrt(t), by one hidden layer of 100 ReLU units, and by a small
convolutional network. As in the paper, alpha and b2 are chosen by a grid for each optimizer,
here on the training loss at the end. The seeds that choose are not those that are shown.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax import schedules
from amsgrad_jax.demo.problems import digit_images
from benchmarks import pages

Layers: TypeAlias = dict[str, tuple[jax.Array, jax.Array]]

B1: Final = 0.9
B2S: Final = (0.99, 0.999)
BATCH: Final = 128
GRID_SEEDS: Final = (100, 101)
SEEDS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
RUNS: Final = 10  # trained at once: the seeds, or half of a grid; so each case compiles once
OPTIMIZERS: Final = MappingProxyType({"Adam": optax.adam, "AMSGrad": amsgrad_jax.amsgrad})
COLORS: Final = MappingProxyType({"Adam": "#E69F00", "AMSGrad": "#0072B2"})  # Okabe and Ito


class Model(NamedTuple):
    """A network: inputs and outputs of its layers, its logits, and how it is trained.

    The training loss is cross-entropy and half of ``penalty`` times the squared kernels.
    """

    title: str
    layers: dict[str, tuple[int, int]]
    logits: Callable[[Layers, jax.Array], jax.Array]
    learning_rate: Callable[[jax.Array], Any]
    alphas: tuple[float, ...]
    epochs: int
    penalty: float = 0.0


def _dense(layer: tuple[jax.Array, jax.Array], inputs: jax.Array) -> jax.Array:
    kernel, bias = layer
    return inputs @ kernel + bias


def _logistic(layers: Layers, images: jax.Array) -> jax.Array:
    return _dense(layers["last"], images.reshape(len(images), 64))


def _hidden(layers: Layers, images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(_dense(layers["hidden"], images.reshape(len(images), 64)))
    return _dense(layers["last"], hidden)


def convolution(layers: Layers, images: jax.Array) -> jax.Array:
    """Logits: two 3 by 3 convolutions, each halved by its maximum, and a dense layer."""
    signal = images[..., None]
    for name in ("first", "second"):
        signal = _pool(jax.nn.relu(_dense(layers[name], _patches(signal))))
    return _dense(layers["last"], signal.reshape(len(images), -1))


def _patches(signal: jax.Array) -> jax.Array:
    """The 3 by 3 neighbours of each pixel, so that a convolution is a dense layer.

    One matrix product for each run is what XLA's CPU backend is fast at; convolutions with
    a kernel for each run it would make one by one.
    """
    height, width = signal.shape[1:3]
    padded = jnp.pad(signal, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = itertools.product(range(3), repeat=2)
    return jnp.concatenate([padded[:, i : i + height, j : j + width] for i, j in shifts], -1)


def _pool(signal: jax.Array) -> jax.Array:
    images, height, width, channels = signal.shape
    return signal.reshape(images, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


MODELS: Final = MappingProxyType(
    {
        "logistic": Model(
            "logistic regression, step size alpha / sqrt(t)",
            {"last": (64, 10)},
            _logistic,
            schedules.inverse_sqrt,
            (0.03, 0.1, 0.3, 1.0, 3.0),
            epochs=100,
            # The digits are linearly separable: without it the loss has no minimum, and the
            # largest alpha is always best.
            penalty=1e-3,
        ),
        "hidden": Model(
            "one hidden layer of 100 ReLU units",
            {"hidden": (64, 100), "last": (100, 10)},
            _hidden,
            lambda alpha: alpha,
            (0.003, 0.01, 0.03, 0.1, 0.3),
            epochs=60,
        ),
        "convolution": Model(
            "two convolutions of 8 and 16 channels",
            {"first": (9, 8), "second": (72, 16), "last": (64, 10)},
            convolution,
            lambda alpha: alpha,
            (0.003, 0.01, 0.03, 0.1, 0.3),
            epochs=30,
        ),
    }
)


def _data() -> tuple[jax.Array, ...]:
    """Images and labels to train on, and to test on: four fifths and one fifth."""
    from sklearn.model_selection import train_test_split

    images, labels = digit_images()
    split = train_test_split(
        images.reshape(-1, 8, 8),
        labels,
        test_size=0.2,
        random_state=0,
        stratify=labels,
    )
    images, test_images, labels, test_labels = map(jnp.asarray, split)
    return images, labels, test_images, test_labels


def _start(model: Model, seed: int, epochs: int, examples: int) -> tuple[Any, np.ndarray]:
    """The layers and the order of the examples, shape (epochs, batches, BATCH)."""
    rng = np.random.default_rng(seed)
    layers = {
        # As PyTorch's nn.Linear: uniform within 1 / sqrt(inputs).
        name: tuple(
            (rng.uniform(-1, 1, shape) / fan_in**0.5).astype(np.float32)
            for shape in ((fan_in, fan_out), (fan_out,))
        )
        for name, (fan_in, fan_out) in model.layers.items()
    }
    full = examples // BATCH * BATCH  # an epoch leaves out the rest, others each time
    orders = [rng.permutation(examples)[:full].reshape(-1, BATCH) for _ in range(epochs)]
    return layers, np.array(orders, np.int32)


@functools.partial(jax.jit, static_argnames=("name", "optimizer"))
def train(
    alphas: jax.Array,
    b2s: jax.Array,
    starts: tuple[Layers, jax.Array],
    data: tuple[jax.Array, ...],
    *,
    name: str,
    optimizer: str,
) -> tuple[jax.Array, jax.Array]:
    """Trains one network for each alpha, b2 and start, all at once.

    Returns the training losses and the test accuracies, shape (runs, epochs + 1), the
    first before training.
    """
    model = MODELS[name]
    images, labels, test_images, test_labels = data

    def loss(layers: Layers, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.logits(layers, images)
        squares = sum(jnp.sum(kernel**2) for kernel, _ in layers.values())
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return entropy + model.penalty / 2 * squares

    def measure(layers: Layers) -> tuple[jax.Array, jax.Array]:
        correct = model.logits(layers, test_images).argmax(axis=1) == test_labels
        return loss(layers, images, labels), correct.mean()

    def one(alpha: jax.Array, b2: jax.Array, start: tuple[Layers, jax.Array]) -> Any:
        layers, orders = start
        update = OPTIMIZERS[optimizer](model.learning_rate(alpha), b1=B1, b2=b2)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            layers, state = carry
            gradients = jax.grad(loss)(layers, images[batch], labels[batch])
            updates, state = update.update(gradients, state, layers)
            return (optax.apply_updates(layers, updates), state), None

        def epoch(carry: Any, order: jax.Array) -> tuple[Any, Any]:
            before = measure(carry[0])
            carry, _ = jax.lax.scan(step, carry, order)
            return carry, before

        carry, measured = jax.lax.scan(epoch, (layers, update.init(layers)), orders)
        return jax.tree.map(jnp.append, measured, measure(carry[0]))

    return jax.vmap(one)(alphas, b2s, starts)


def experiment(name: str, *, quick: bool) -> dict[str, dict[str, Any]]:
    """For each optimizer: its grid, its best alpha and b2, and its curves with them."""
    model, data = MODELS[name], _data()
    epochs = 1 if quick else model.epochs

    def run(settings: list[tuple[float, float]], seeds: tuple[int, ...]) -> list[np.ndarray]:
        """Losses and accuracies, shape (settings, seeds, epochs + 1)."""
        runs = [
            (*setting, _start(model, seed, epochs, len(data[0])))
            for setting, seed in itertools.product(settings, seeds)
        ]
        parts = []
        for first in range(0, len(runs), RUNS):
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *runs[first : first + RUNS])
            parts.append(train(*stacked, data, name=name, optimizer=optimizer))
        curves = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        return [curve.reshape(len(settings), len(seeds), -1) for curve in curves]

    results = {}
    settings = list(itertools.product(model.alphas, B2S))
    if quick:
        settings = settings[: RUNS // len(GRID_SEEDS)]
    for optimizer in OPTIMIZERS:
        losses, _ = run(settings, GRID_SEEDS)
        final = losses[:, :, -1].mean(axis=1)
        # A run that diverged to NaN is not the best one.
        alpha, b2 = settings[int(np.nanargmin(final))]
        losses, accuracies = run([(alpha, b2)], SEEDS)
        results[optimizer] = {
            "alpha": alpha,
            "b2": b2,
            "grid": [
                {"alpha": a, "b2": b, "training loss": _digits(value)}
                for (a, b), value in zip(settings, final, strict=True)
            ],
            "training loss": [[_digits(x) for x in curve] for curve in losses[0]],
            "test accuracy": [[_digits(x) for x in curve] for curve in accuracies[0]],
        }
    return results


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def draw(title: str, results: dict[str, dict[str, Any]]) -> Any:
    """Training loss and test accuracy: the mean over the seeds, and all of them as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    figure.suptitle(f"Digits: {title}; mean and range of {len(SEEDS)} seeds")
    for axes, measure in zip(
        figure.subplots(1, 2), ("training loss", "test accuracy"), strict=True
    ):
        for optimizer, result in results.items():
            curves = np.array(result[measure])
            epochs = np.arange(curves.shape[1])
            color = COLORS[optimizer]
            label = f"{optimizer}, alpha {result['alpha']}, b2 {result['b2']}"
            axes.plot(epochs, curves.mean(axis=0), color=color, label=label)
            axes.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.25)
        axes.set(xlabel="epoch", ylabel=measure, title=measure)
        axes.grid(alpha=0.3)
    figure.axes[0].set(yscale="log")
    figure.axes[1].set(ylim=(0.9, 1.0))
    figure.axes[0].legend()
    return figure


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/section5.md by the names of their places, from docs/section5.json."""
    ends, grids = [], []
    for model in results["models"].values():
        for optimizer, result in model["optimizers"].items():
            loss, accuracy = (
                np.array(result[measure])[:, -1] for measure in ("training loss", "test accuracy")
            )
            setting = (model["title"], optimizer)
            ends.append(
                (
                    *setting,
                    f"{result['alpha']:g}",
                    f"{result['b2']:g}",
                    f"{loss.mean():.2e} ± {loss.std(ddof=1):.0e}",
                    f"{accuracy.mean():.2%} ± {accuracy.std(ddof=1):.2%}",
                )
            )
            for b2 in B2S:
                row = [cell for cell in result["grid"] if cell["b2"] == b2]
                shown = ", ".join(f"{cell['alpha']:g}: {cell['training loss']:.3g}" for cell in row)
                grids.append((*setting, f"{b2:g}", shown))
    return {
        "section5-ends": pages.table(
            ("network", "optimizer", "alpha", "b2", "training loss", "test accuracy"), ends
        ),
        "section5-grid": pages.table(("network", "optimizer", "b2", "loss by alpha"), grids),
    }


def main(quick: bool) -> None:
    print(f"Section 5 of the paper on {len(SEEDS)} seeds; AMSGrad in PyTorch's convention")
    models, figures = {}, {}
    for name, model in MODELS.items():
        start = time.perf_counter()
        results = experiment(name, quick=quick)
        print(f"{model.title} ({time.perf_counter() - start:.0f} s)")
        for optimizer, result in results.items():
            loss, accuracy = (
                np.array(result[measure])[:, -1] for measure in ("training loss", "test accuracy")
            )
            print(
                f"  {optimizer:8} alpha {result['alpha']:<7} b2 {result['b2']:<6}"
                f" training loss {loss.mean():.3g} ({loss.min():.3g} to {loss.max():.3g})"
                f"  test accuracy {accuracy.mean():.2%} ({accuracy.min():.2%} to"
                f" {accuracy.max():.2%})",
                flush=True,
            )
        figures[f"section5_{name}.png"] = draw(model.title, results)
        models[name] = {"title": model.title, "optimizers": results}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax")}
    results = {"versions": versions, "seeds": SEEDS, "grid seeds": GRID_SEEDS, "models": models}
    if not quick:  # which has shown that it runs; what is in docs/ stays
        pages.publish("section5.md", "section5", results, tables(results), figures)
