"""How far one float32 step is from float64: ours, optax's and PyTorch's.

Every implementation takes each step from the same float32 state and is compared with the
float64 reference of its own convention. Gradients have one sign, so that nothing cancels
in the first moment and the relative error of an update means something.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax._conventions import ConventionName
from benchmarks import machine, pages
from benchmarks.optimizers import CONVENTIONS, has
from tests import reference

RATES = (0.9, 0.99, 0.999, 0.9999)

Step = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def through_optax(optimizer: optax.GradientTransformation, state: type) -> Step:
    """One step of a transformation from given moments, whose state is of that type."""
    update = jax.jit(optimizer.update)

    def step(g: np.ndarray, m: np.ndarray, v: np.ndarray, x: np.ndarray, t: int) -> np.ndarray:
        before = state(jnp.int32(t - 1), jnp.asarray(m), jnp.asarray(v), jnp.asarray(x))
        return np.asarray(update(jnp.asarray(g), before)[0])

    return step


def _through_torch(b2: float) -> Step | None:
    if not has("torch"):
        return None
    torch = importlib.import_module("torch")

    def step(g: np.ndarray, m: np.ndarray, v: np.ndarray, x: np.ndarray, t: int) -> np.ndarray:
        param = torch.zeros(g.size, requires_grad=True)
        param.grad = torch.tensor(g)
        optimizer = torch.optim.Adam([param], lr=1.0, betas=(0.9, b2), amsgrad=True)
        optimizer.state[param] = {
            "step": torch.tensor(float(t - 1)),
            "exp_avg": torch.tensor(m),
            "exp_avg_sq": torch.tensor(v),
            "max_exp_avg_sq": torch.tensor(x),
        }
        optimizer.step()
        return -param.detach().numpy()

    return step


def largest_error(step: Step, convention: str, b2: float, numbers: Iterable[int]) -> float:
    """The largest relative error of an update in the steps of those numbers, from 1.

    The moments go on as the reference has them, rounded to float32: every implementation
    takes each step from the same state.
    """
    rng = np.random.default_rng(0)
    state = reference.Moments(*np.zeros((3, 256), np.float32))
    worst = 0.0
    for t in numbers:
        g = (10.0 ** rng.uniform(-4, 4, 256)).astype(np.float32)
        wide = reference.Moments(*(moment.astype(np.float64) for moment in state))
        want, after = reference.step(convention, g.astype(np.float64), wide, t, 0.9, b2, 1e-8)
        worst = max(worst, float(np.max(np.abs(step(g, *state, t) / want - 1))))
        state = reference.Moments(*(moment.astype(np.float32) for moment in after))
    return worst


def _ours(convention: ConventionName, b2: float) -> Step | None:
    optimizer = amsgrad_jax.scale_by_amsgrad(b2=b2, convention=convention)
    return through_optax(optimizer, amsgrad_jax.ScaleByAmsgradState)


def rows() -> Mapping[str, tuple[str, Callable[[float], Step | None]]]:
    """Who is compared: the convention of each, and its step by ``b2``."""
    ours = {
        f"ours, {convention}": (
            convention,
            functools.partial(_ours, convention),
        )
        for convention in CONVENTIONS
    }
    return ours | {
        "optax.amsgrad": (
            "optax",
            lambda b2: through_optax(optax.scale_by_amsgrad(b2=b2), optax.ScaleByAmsgradState),
        ),
        "torch Adam(amsgrad=True)": ("pytorch", _through_torch),
    }


def main(quick: bool) -> None:
    steps = 100 if quick else 10_000
    numbers = range(1, steps + 1)
    print(f"Largest relative error of a float32 step beside float64, in {steps:,} steps, by b2")
    errors = {
        name: [
            None if step is None else float(f"{largest_error(step, convention, b2, numbers):.3g}")
            for step, b2 in ((make(b2), b2) for b2 in RATES)
        ]
        for name, (convention, make) in rows().items()
    }
    results = machine.describe("jax", "optax", "torch") | {"steps": steps, "errors": errors}
    table = tables(results)
    print(f"{table['accuracy']}\n", flush=True)
    if not quick:
        pages.publish("benchmarks.md", "accuracy", results, table, {})


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The table of the page, by the name of its mark."""
    return {
        "accuracy": pages.table(
            ("optimizer", *(f"`b2` = {b2}" for b2 in RATES)),
            [
                (name, *("" if error is None else f"{error:.1e}" for error in errors))
                for name, errors in results["errors"].items()
            ],
        )
    }
