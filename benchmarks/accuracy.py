"""How far one float32 step is from float64: ours, optax's and PyTorch's.

Every implementation starts from one float32 state and is compared with the float64
reference of its own convention. Average and gradient have one sign, so that nothing
cancels in the first moment and the relative error of an update means something.
"""

import importlib
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from tests import reference

Step = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def through_optax(optimizer: optax.GradientTransformation, state: type) -> Step:
    """One step of a transformation from given moments, whose state is of that type."""
    update = jax.jit(optimizer.update)

    def step(g: np.ndarray, m: np.ndarray, v: np.ndarray, x: np.ndarray, t: int) -> np.ndarray:
        before = state(jnp.int32(t - 1), jnp.asarray(m), jnp.asarray(v), jnp.asarray(x))
        return np.asarray(update(jnp.asarray(g), before)[0])

    return step


def _through_torch(b2: float) -> Step | None:
    if importlib.util.find_spec("torch") is None:
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


def largest_error(step: Step, convention: str, b2: float, points: int) -> float:
    """The largest relative error of an update for steps 1 to 100,000."""
    rng = np.random.default_rng(0)
    g, m, v = (10.0 ** rng.uniform(-4, 4, 4096).astype(np.float32) for _ in range(3))
    x = v * np.float32(10.0) ** rng.uniform(0, 2, v.size).astype(np.float32)
    wide = reference.Moments(*(moment.astype(np.float64) for moment in (m, v, x)))
    worst = 0.0
    for t in np.unique(np.geomspace(1, 100_000, points).astype(int)):
        want, _ = reference.step(convention, g.astype(np.float64), wide, int(t), 0.9, b2, 1e-8)
        worst = max(worst, float(np.max(np.abs(step(g, m, v, x, int(t)) / want - 1))))
    return worst


def main(quick: bool) -> None:
    rates = (0.9, 0.99, 0.999, 0.9999)
    print("Largest relative error of a float32 step, t = 1 to 100,000, by b2")
    print(f"{'':32}" + "".join(f"{b2:>10}" for b2 in rates))
    rows: dict[str, tuple[str, Callable[[float], Step | None]]] = {}
    for name in ("paper", "pytorch", "keras", "optax"):
        rows[f"amsgrad_jax, {name}"] = (
            name,
            lambda b2, name=name: through_optax(
                amsgrad_jax.scale_by_amsgrad(b2=b2, convention=name),
                amsgrad_jax.ScaleByAmsgradState,
            ),
        )
    rows["optax.amsgrad"] = (
        "optax",
        lambda b2: through_optax(optax.scale_by_amsgrad(b2=b2), optax.ScaleByAmsgradState),
    )
    rows["torch.optim.Adam(amsgrad=True)"] = ("pytorch", _through_torch)
    for label, (convention, make) in rows.items():
        steps = [make(b2) for b2 in rates]
        cells = [
            "-"
            if step is None
            else f"{largest_error(step, convention, b2, 20 if quick else 300):.1e}"
            for step, b2 in zip(steps, rates, strict=True)
        ]
        print(f"{label:32}" + "".join(f"{cell:>10}" for cell in cells), flush=True)
    print()
