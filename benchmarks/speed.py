"""Time, memory and compile time of a step, beside Optax, Keras and PyTorch.

A step is update and apply, on donated arrays. All optimizers run in one process and take
turns, in another order in every round. Writes docs/speed_cpu.json (or gpu) and its figures,
and refreshes the tables of docs/benchmarks.md.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine, optimizers, pages, speed_report
from benchmarks.optimizers import Optimizer, Run, Shapes

_OURS = [f"ours, {storage}" for storage in optimizers.STORAGES]  # in the default convention


@dataclasses.dataclass(frozen=True)
class Tree:
    """Parameters: their shapes, and how often their step is compiled and run."""

    name: str
    shapes: Shapes
    compiles: int
    rounds: int

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)


def gpt(width: int, vocabulary: int, layers: int) -> Shapes:
    """The shapes of a GPT: two embeddings, a norm, and 12 arrays in each layer."""
    norm = ((width,), (width,))

    def dense(inputs: int, outputs: int) -> Shapes:
        return (inputs * width, outputs * width), (outputs * width,)

    layer = (*norm, *dense(1, 3), *dense(1, 1), *norm, *dense(1, 4), *dense(4, 1))
    return ((vocabulary, width), (1024, width), *norm, *(layers * layer))


def trees(quick: bool) -> list[Tree]:
    if quick:
        return [
            Tree("one array", ((100_000,),), 1, 3),
            Tree("4 leaves", 4 * ((32, 32),), 1, 3),
        ]
    has_room = jax.default_backend() == "gpu" and machine.memory() > 100e9
    large = 1_000_000_000 if has_room else 32_000_000
    return [
        Tree("one array", ((large,),), 5, 30),
        Tree("GPT-like", gpt(512, 28_000, layers=8), 3, 30),
        Tree("200 leaves", 200 * ((32, 32),), 3, 100),
        Tree("1,000 leaves", 1000 * ((32, 32),), 3, 40),
        Tree("2,000 leaves", 2000 * ((32, 32),), 1, 30),
    ]


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step of every run. The first steps, which warm up, are not counted."""
    order = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0).shuffle
    for i in range(rounds + 2):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name].step()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def fitting(candidates: Sequence[Optimizer], size: int) -> Iterator[list[Optimizer]]:
    """Groups that fit into memory together, each with what others are compared with."""
    compared_with = [optimizers.OPTAX, *optimizers.copies()]
    others = [c for c in candidates if c is not optimizers.OPTAX]
    # Parameters, gradients and 12 bytes of state: 20 bytes a parameter at most.
    room = max(1, int(0.6 * machine.memory() / (20 * size)) - len(compared_with))
    for first in range(0, len(others), room):
        yield [*compared_with, *others[first : first + room]]


def steps(tree: Tree) -> dict[str, Any]:
    """Quartiles of the milliseconds of a step, and the memory, of all that can be compared."""
    seconds: dict[str, list[float]] = {}
    memory = {}
    candidates = optimizers.every()
    if len(tree.shapes) >= 1000:
        # It takes half a minute to compile; smaller trees show that all conventions are alike.
        candidates = [c for c in candidates if not c.name.startswith("ours, packed,")]
    for group in fitting(candidates, tree.size):
        # Who is started first in a process is 4 to 14 % faster on 1,000 leaves, in whatever order
        # they then run. It is nobody by design.
        random.Random(tree.size).shuffle(group)
        runs: dict[str, Run] = {}
        for candidate in group:
            runs[candidate.name] = candidate.start(tree.shapes)
            machine.trim()
        for name, times in interleaved(runs, tree.rounds).items():
            seconds.setdefault(name, []).extend(times)
        for name, run in runs.items():
            extra = run.extra_bytes
            if jax.default_backend() == "cpu":
                extra = machine.extra_memory(run.step)
            memory[name] = [
                round(b / tree.size, 2) if b is not None else None for b in (run.state_bytes, extra)
            ]
    quartiles = {
        name: [round(1e3 * q, 4) for q in statistics.quantiles(times, n=4)]
        for name, times in seconds.items()
    }
    return {"step": quartiles, "memory": memory}


def compilations(tree: Tree) -> dict[str, list[float]]:
    """Median seconds to trace and lower, and to compile, in the default convention."""
    compared = [c for c in optimizers.every() if c.name in _OURS or not c.name.startswith("ours")]
    compared = [c for c in compared if c.compile]
    seconds: dict[str, list[tuple[float, float]]] = {c.name: [] for c in compared}
    for _ in range(tree.compiles):
        for candidate in compared:
            assert candidate.compile is not None
            seconds[candidate.name].append(candidate.compile(tree.shapes))
            machine.trim()
    return {
        name: [round(statistics.median(column), 4) for column in zip(*times, strict=True)]
        for name, times in seconds.items()
    }


def scaling(sizes: Sequence[int]) -> dict[str, list[float]]:
    """Median microseconds of a step of one array, by its size."""
    names = [*_OURS, optimizers.OPTAX.name, "torch Adam(amsgrad=True), fused"]
    compared = [c for c in optimizers.every() if c.name in names]
    microseconds: dict[str, list[float]] = {c.name: [] for c in compared}
    for size in sizes:
        runs = {c.name: c.start(((size,),)) for c in compared}
        rounds = min(300, max(10, 10**9 // size))
        for name, times in interleaved(runs, rounds).items():
            microseconds[name].append(round(1e6 * statistics.median(times), 2))
    return microseconds


def main(quick: bool) -> None:
    print("A donated step: update and apply; all take turns. Half an hour unless --quick")
    results: dict[str, Any] = {}
    results |= machine.describe("amsgrad_jax", "jax", "optax", "keras", "torch")
    results["backend"] = jax.default_backend()
    results["moves"] = {c.name: c.moves for c in (*optimizers.every(), *optimizers.copies())}
    results["trees"] = []
    for tree in trees(quick):
        start = time.perf_counter()
        row = {"name": tree.name, "leaves": len(tree.shapes), "size": tree.size}
        results["trees"].append(row | steps(tree) | {"compile": compilations(tree)})
        print(f"{tree.name}: {time.perf_counter() - start:.0f} s", flush=True)
    sizes = [10**3, 10**4] if quick else [10**k for k in range(3, 9)]
    results["scaling"] = {"sizes": sizes, "microseconds": scaling(sizes)}
    tables, figures = speed_report.tables(results), speed_report.figures(results)
    for name, table in tables.items():
        print(f"\n{name}\n{table}", flush=True)
    print()
    if not quick:  # which only shows that it runs
        name = f"speed_{results['backend']}"
        pages.publish("benchmarks.md", name, results, tables, figures)
