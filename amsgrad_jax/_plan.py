"""Memory per device of a large model: parameters, gradients and optimizer state.

The model is like GPT: an embedding of 32,768 tokens, and layers of 4 kernels (d, 3d), (d, d),
(d, 4d) and (4d, d) with two norms of d, in all

    32768 d + layers (12 d² + 2 d) + d    parameters.

The width d is a power of two, about 128 times the number of layers. The number of layers is the one
that comes closest to the requested number of parameters.

With N parameters of s bytes, each of n devices has s N bytes of parameters, s N bytes of
gradients, and its part of the state. With ZeRO, stage 1, an array of the state is divided by n if n
divides one of its dimensions; otherwise, and without ZeRO, every device has all of it. The state
takes 12 bytes per parameter in full storage, 4 in packed storage, and 3 s in optax.amsgrad, whose
moments have the dtype of the parameters. Activations are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import optax

from amsgrad_jax import sharding
from amsgrad_jax._alias import amsgrad
from amsgrad_jax._state import Storage

SMALLEST: Final = 10**8
LARGEST: Final = 10**300
_TOKENS: Final = 2**15
_GB: Final = 1e9


class Model(NamedTuple):
    """Shapes of the parameters outside of the layers, those of one layer, and the layer count."""

    once: dict[str, Any]
    layer: dict[str, Any]
    layers: int

    @property
    def size(self) -> int:
        """The number of parameters."""
        once, layer = (
            sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
            for part in (self.once, self.layer)
        )
        return once + self.layers * layer


def gpt_like(number: float, dtype: jax.typing.DTypeLike) -> Model:
    """Shapes of a model that has about this number of parameters, from 1e8 to 1e300."""
    width = 2 ** round(math.log2(128 * (number / (12 * 128**2)) ** (1 / 3)))
    layers = round((number - (_TOKENS + 1) * width) / (12 * width**2 + 2 * width))

    def shape(*dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, dtype)

    layer = {
        "attention": {"in": shape(width, 3 * width), "out": shape(width, width)},
        "feedforward": {"in": shape(width, 4 * width), "out": shape(4 * width, width)},
        "norms": [shape(width), shape(width)],
    }
    return Model({"tokens": shape(_TOKENS, width), "norm": shape(width)}, layer, layers)


def table(
    number: float, devices: Sequence[int], storages: Iterable[Storage], dtype: str
) -> Iterator[str]:
    """The lines of the table: a row for each optimizer and number of devices."""
    model = gpt_like(number, dtype)
    (width,) = model.once["norm"].shape
    yield (f"{model.size / _GB:.2f}e9 parameters in {dtype}: {model.layers} layers, width {width}.")
    yield "GB (1e9 bytes) on each device, without activations; state with ZeRO, stage 1."
    yield ""
    columns = ("params", "gradients", "state", "without ZeRO")
    yield f"{'optimizer':18}{'devices':>8}" + "".join(f"{name:>13}" for name in columns)
    optimizers = {name: amsgrad(1e-3, storage=name) for name in storages}
    for name, optimizer in (optimizers | {"optax.amsgrad": optax.amsgrad(1e-3)}).items():
        states = [jax.eval_shape(optimizer.init, part) for part in (model.once, model.layer)]
        for count in devices:
            once, layer = (
                sharding.memory_report(state, part, count)
                for state, part in zip(states, (model.once, model.layer), strict=True)
            )
            params = once.params + model.layers * layer.params
            zero1, whole = (
                _bytes(once, layer, model.layers)
                for once, layer in ((once.zero1, layer.zero1), (once.state, layer.state))
            )
            yield f"{name:18}{count:8}" + "".join(
                f" {n / _GB:12.3f}" for n in (params, params, zero1, whole)
            )


def _bytes(once: dict[str, int], layer: dict[str, int], layers: int) -> int:
    """Bytes of the state of all layers, which share one count."""
    return sum(
        size if name == "count" else size + layers * layer[name] for name, size in once.items()
    )
