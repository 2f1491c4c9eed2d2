"""The command `plan`: bytes on each device of a model that need not fit here.

The model is like GPT: 32,768 tokens, and layers of 4 kernels (d, 3d), (d, d), (d, 4d) and (4d, d)
with two norms of d, in all

    32768 d + layers (12 d² + 2 d) + d    parameters.

The width d is the power of two next to 128 times the number of layers; as many layers as come next
to the number that was asked for.

On each of n devices, with N parameters of s bytes, stand s N bytes of parameters, s N of
gradients, and the state: each array's bytes divided by n where n divides one of its dimensions
(ZeRO, stage 1), whole where it does not. Without ZeRO they are whole. The state has 12 bytes per
parameter in full storage and 4 in packed; 3 s in optax.amsgrad, which has the moments in the dtype
of the parameters. Activations are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import jax
import optax

from amsgrad_jax import sharding
from amsgrad_jax._alias import amsgrad
from amsgrad_jax._state import Storage

SMALLEST: Final = 10**8
_TOKENS: Final = 2**15
_GB: Final = 1e9


def gpt_like(number: float, dtype: jax.typing.DTypeLike) -> dict[str, Any]:
    """Shapes of a model that has about this number of parameters, at least 1e8."""
    width = 2 ** round(math.log2(128 * (number / (12 * 128**2)) ** (1 / 3)))
    layers = round((number - (_TOKENS + 1) * width) / (12 * width**2 + 2 * width))

    def shape(*dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, dtype)

    layer = {
        "attention": {"in": shape(width, 3 * width), "out": shape(width, width)},
        "feedforward": {"in": shape(width, 4 * width), "out": shape(4 * width, width)},
        "norms": [shape(width), shape(width)],
    }
    return {"tokens": shape(_TOKENS, width), "layers": layers * [layer], "norm": shape(width)}


def table(
    number: float, devices: Sequence[int], storages: Iterable[Storage], dtype: str
) -> Iterator[str]:
    """The lines of the table: a row for each optimizer and number of devices."""
    params = gpt_like(number, dtype)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    width = params["norm"].size
    yield (
        f"{size / _GB:.2f}e9 parameters in {dtype}: {len(params['layers'])} layers, width {width}."
    )
    yield "GB (1e9 bytes) on each device, without activations; state with ZeRO, stage 1."
    yield ""
    columns = ("params", "gradients", "state", "without ZeRO")
    yield f"{'optimizer':18}{'devices':>8}" + "".join(f"{name:>13}" for name in columns)
    optimizers = {name: amsgrad(1e-3, storage=name) for name in storages}
    for name, optimizer in (optimizers | {"optax.amsgrad": optax.amsgrad(1e-3)}).items():
        state = jax.eval_shape(optimizer.init, params)
        for count in devices:
            report = sharding.memory_report(state, params, count)
            totals = (sum(report.zero1.values()), sum(report.state.values()))
            numbers = (report.params, report.gradients, *totals)
            yield f"{name:18}{count:8}" + "".join(f"{n / _GB:13.3f}" for n in numbers)
