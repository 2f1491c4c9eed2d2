"""The optimizers that are compared, each as a run: arrays, and a step to take on them.

Every run starts from the same parameters and takes the same gradients, in float32, and
holds nothing twice: JAX donates parameters and state, PyTorch works in place.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax._conventions import ConventionName
from amsgrad_jax._state import Storage

LEARNING_RATE = 1e-3
CONVENTIONS: tuple[ConventionName, ...] = ("pytorch", "keras", "optax", "paper")
STORAGES: tuple[Storage, ...] = ("full", "packed")

Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class Run:
    """An optimizer at work.

    Attributes:
      step: Takes one step, and returns when it is done.
      params: The parameters as they are.
      state_bytes: Bytes of all arrays of the state.
      extra_bytes: Bytes that a step needs beside parameters, gradients and state, as the
        library's own accounting has it; None where it has none.
    """

    step: Callable[[], None]
    params: Callable[[], list[np.ndarray]]
    state_bytes: int
    extra_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One that is compared.

    Attributes:
      name: As it stands in tables.
      moves: Bytes a parameter that a step must read and write: gradient and parameter, the
        new parameter, and every moment twice.
      start: Makes a run on arrays of the given shapes.
      compile: For those that run in XLA: seconds to trace and lower, and to compile.
    """

    name: str
    moves: int
    start: Callable[[Shapes], Run]
    compile: Callable[[Shapes], tuple[float, float]] | None = None


def parameters(shapes: Shapes) -> list[np.ndarray]:
    """The parameters that every run starts from."""
    return [np.full(shape, 0.1, np.float32) for shape in shapes]


@functools.lru_cache(maxsize=1)
def gradients(shapes: Shapes) -> list[np.ndarray]:
    """The gradients of every step; of both signs and many sizes."""
    rng = np.random.default_rng(0)
    return [1e-2 * rng.standard_normal(shape, np.float32) for shape in shapes]


@dataclasses.dataclass(frozen=True)
class _InXla:
    """What XLA compiles: ``step(params, state, gradients)`` gives new params and state."""

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]

    def _lower(self, shapes: Shapes) -> Any:
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        state = jax.eval_shape(self.init, params)
        return jax.jit(self.step, donate_argnums=(0, 1)).lower(params, state, params)

    def compile(self, shapes: Shapes) -> tuple[float, float]:
        jax.clear_caches()
        start = time.perf_counter()
        lowered = self._lower(shapes)
        middle = time.perf_counter()
        lowered.compile()
        return middle - start, time.perf_counter() - middle

    def start(self, shapes: Shapes) -> Run:
        compiled = self._lower(shapes).compile()
        now = [[jnp.array(param) for param in parameters(shapes)]]
        now.append(jax.jit(self.init)(now[0]))
        fixed = [jnp.array(gradient) for gradient in gradients(shapes)]

        def step() -> None:
            now[:] = jax.block_until_ready(compiled(*now, fixed))

        return Run(
            step,
            lambda: [np.asarray(param) for param in now[0]],
            sum(leaf.nbytes for leaf in jax.tree.leaves(now[1])),
            compiled.memory_analysis().temp_size_in_bytes,
        )


def _through_optax(name: str, moves: int, optimizer: optax.GradientTransformation) -> Optimizer:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    xla = _InXla(optimizer.init, step)
    return Optimizer(name, moves, xla.start, xla.compile)


def ours(convention: ConventionName = "pytorch", storage: Storage = "full") -> Optimizer:
    """Ours; its name is the storage, and the convention where that is not the default."""
    name = storage if convention == "pytorch" else f"{storage}, {convention}"
    optimizer = amsgrad_jax.amsgrad(LEARNING_RATE, convention=convention, storage=storage)
    state = {"full": 12, "packed": 4}[storage]
    return _through_optax(f"ours, {name}", 12 + 2 * state, optimizer)


OPTAX = _through_optax("optax.amsgrad", 36, optax.amsgrad(LEARNING_RATE))
ADAM = _through_optax("optax.adam", 28, optax.adam(LEARNING_RATE))


def keras() -> Optimizer:
    """Keras on JAX, through the function that its own training loop calls."""

    def built(shapes: Shapes) -> _InXla:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        keras = importlib.import_module("keras")  # takes seconds
        optimizer = keras.optimizers.Adam(LEARNING_RATE, amsgrad=True, epsilon=1e-8)
        optimizer.build([keras.Variable(np.zeros(shape, np.float32)) for shape in shapes])

        def init(_: Any) -> Any:
            # The scalars are the number of the step and the learning rate.
            return [jnp.zeros(v.shape) if v.ndim else v.value + 0 for v in optimizer.variables]

        return _InXla(init, lambda p, state, g: optimizer.stateless_apply(state, g, p))

    return Optimizer(
        "Keras on JAX",
        36,
        lambda shapes: built(shapes).start(shapes),
        lambda shapes: built(shapes).compile(shapes),
    )


def torch(name: str, **arguments: bool) -> Optimizer:
    """PyTorch's Adam, on the kind of device that JAX uses."""

    def start(shapes: Shapes) -> Run:
        torch = importlib.import_module("torch")
        params = _tensors(parameters(shapes))
        for param, gradient in zip(params, _tensors(gradients(shapes)), strict=True):
            param.grad = gradient
        optimizer = torch.optim.Adam(params, lr=LEARNING_RATE, amsgrad=True, **arguments)

        def step() -> None:
            optimizer.step()
            _wait_for_torch()

        step()  # makes the state
        moments = [v for values in optimizer.state.values() for v in values.values()]
        extra = None
        if params[0].is_cuda:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            extra = torch.cuda.max_memory_allocated() - before
        return Run(
            step,
            lambda: [param.cpu().numpy() for param in params],
            sum(moment.nbytes for moment in moments),
            extra,
        )

    return Optimizer(f"torch Adam(amsgrad=True), {name}", 36, start)


def _tensors(arrays: list[np.ndarray]) -> list[Any]:
    torch = importlib.import_module("torch")
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return [torch.tensor(array, device=device) for array in arrays]


def _wait_for_torch() -> None:
    if jax.default_backend() == "gpu":
        importlib.import_module("torch").cuda.synchronize()


def _negated_by_torch(shapes: Shapes) -> Run:
    tensors = _tensors(parameters(shapes))

    def step() -> None:
        for tensor in tensors:
            tensor.neg_()
        _wait_for_torch()

    return Run(step, lambda: [tensor.cpu().numpy() for tensor in tensors], 0)


@functools.cache
def copies() -> list[Optimizer]:
    """What a step that is bound by memory can reach: every byte is read once and written once.

    In place, so that no fresh memory is touched. The faster one counts as the machine's.
    """
    in_xla = _InXla(lambda _: (), lambda x, _, __: ([-a for a in x], ()))
    found = [Optimizer("x ← -x, JAX", 8, in_xla.start)]
    return found + [Optimizer("x ← -x, torch", 8, _negated_by_torch)] * _torch_is_usable()


def has(module: str) -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def every() -> list[Optimizer]:
    """All that can be compared here: those of libraries that are not installed are left out."""
    found = [ours(convention, storage) for storage in STORAGES for convention in CONVENTIONS]
    found += [OPTAX, ADAM]
    if has("keras"):
        found.append(keras())
    if _torch_is_usable():
        found += [torch("default"), torch("foreach", foreach=True), torch("fused", fused=True)]
    return found


def _torch_is_usable() -> bool:
    """Whether PyTorch is installed, with a build for the kind of device that JAX uses."""
    if not has("torch"):
        return False
    return jax.default_backend() == "cpu" or importlib.import_module("torch").cuda.is_available()
