"""What XLA makes of a step for devices that are not here: passes, bytes, temporaries, cycles.

XLA's compilers for TPUs are in `libtpu`, that for CUDA is in JAX's plugin; both compile without
the hardware. `make compiled` installs the first. Writes docs/compiled.json, and refreshes the
tables of docs/benchmarks.md and docs/many_devices.md.
"""

import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import amsgrad_jax
from amsgrad_jax import sharding
from benchmarks import machine, pages
from benchmarks.speed import gpt

TPUS = {
    "TPU v4": ("v4:2x2x1", "v4:4x4x1"),
    "TPU v5e": ("v5e:2x2", "v5e:4x4"),
    "TPU v5p": ("v5p:2x2x1", "v5p:4x4x1"),
    "TPU v6e": ("v6e:2x2", "v6e:4x4"),
}
"""Topologies of a few chips and of 16."""

OPTIMIZERS = {
    "optax.amsgrad": optax.amsgrad(1e-3),
    "ours, full": amsgrad_jax.amsgrad(1e-3),
    "ours, packed": amsgrad_jax.amsgrad(1e-3, storage="packed"),
}

Shapes = tuple[tuple[int, ...], ...]

# What libtpu would ask a TPU machine for.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# Of NVIDIA's and XLA's own description of an H100 SXM with 80 GB.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Made(NamedTuple):
    """What a compiler made of a step.

    Args:
      passes: Kernels that write arrays of a leaf's shape, for each leaf of 65,536 elements or more.
      bytes: Bytes for each parameter that the compiler counts as read or written, for TPUs; also
        those that it brings into the chip's own memory ahead of a kernel.
      temporary: Bytes for each parameter that a step needs beside its arguments and results.
      cycles: The compiler's own estimate, for TPUs.
    """

    passes: float
    bytes: float | None
    temporary: float
    cycles: int | None


def tpu(topology: str) -> Any:
    """The devices of a topology such as ``"v5e:2x2"``, which need not exist."""
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def h100() -> Any:
    """An H100 that need not exist; needs JAX's plugin for CUDA and the wheels that it loads."""
    from jax._src import xla_bridge

    os.environ.update(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", CUDA_VISIBLE_DEVICES="-1")
    known = xla_bridge.canonicalize_platform

    def canonicalize(platform: str) -> str:
        # JAX asks for a GPU when it resolves the name of the platform.
        return "cuda" if platform == "cuda" else known(platform)

    xla_bridge.canonicalize_platform = canonicalize
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=_H100, topology="1x1x1"
        ).devices
    finally:
        xla_bridge.canonicalize_platform = known


def has_cuda() -> bool:
    """Whether JAX's plugin for CUDA is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


def _step(optimizer: optax.GradientTransformation) -> Callable[[Any, Any, Any], Any]:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def _on(tree: Any, place: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def made(optimizer: optax.GradientTransformation, shapes: Shapes, device: Any) -> Made:
    """Compiles update and apply, donated, for parameters of these shapes on one device."""
    place = SingleDeviceSharding(device)
    if device.platform != "tpu":  # of which JAX makes no sharding without a client
        place = NamedSharding(Mesh(np.array([device]), ("d",)), PartitionSpec())
    params = _on([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes], place)
    state = _on(jax.eval_shape(optimizer.init, params), place)
    program = jax.jit(_step(optimizer), donate_argnums=(0, 1)).lower(params, state, params)
    compiled: Any = program.compile()
    size = sum(math.prod(shape) for shape in shapes)
    text = compiled.as_text()
    entry = text[text.index("\nENTRY") :]
    large = [shape for shape in shapes if math.prod(shape) >= 2**16]
    sizes = {f"[{','.join(map(str, shape))}]" for shape in large}
    kernels = re.findall(r"= (.*?) (?:fusion|custom-call)\(", entry)
    cost = compiled.cost_analysis()  # None for a GPU
    cycles = sum(map(int, re.findall(r'estimated_cycles":"(\d+)', entry)))
    return Made(
        passes=round(sum(any(s in k for s in sizes) for k in kernels) / len(large), 2),
        bytes=round(cost["bytes accessed"] / size, 2) if cost else None,
        temporary=round(compiled.memory_analysis().temp_size_in_bytes / size, 3),
        cycles=cycles or None,
    )


def trees(quick: bool) -> dict[str, Shapes]:
    """What is compiled: one large leaf, and a GPT-like tree of two layers."""
    if quick:
        return {"one leaf of 1024 x 512": ((1024, 512),)}
    return {"one leaf of 8192 x 4096": ((8192, 4096),), "GPT-like": gpt(1024, 32_000, layers=2)}


def devices() -> Iterator[tuple[str, Any]]:
    """Those that can be compiled for here, with their names."""
    if importlib.util.find_spec("libtpu"):
        for name, (few, _) in TPUS.items():
            yield name, tpu(few)[0]
    if has_cuda():
        yield "H100", h100()[0]


# ZeRO, stage 1.


def collectives(devices: Any, way: str) -> dict[str, float]:
    """Bytes for each byte of a parameter that every chip's collectives return, by their kind.

    A step of data parallelism with the state split over the devices: ``way`` is ``"zero1"``, our
    shardings under ``jit``, or ``"psum_scatter"``, written by hand in ``shard_map``.
    """
    mesh = Mesh(np.array(devices), ("data",))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    optimizer = OPTIMIZERS["ours, full"]
    shape = (2048, 2048)
    params = _on({"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, whole)
    batch = _on(jax.ShapeDtypeStruct((256, shape[0]), jnp.float32), split)
    state = jax.eval_shape(optimizer.init, params)
    places = sharding.zero1_shardings(state, params, mesh).shardings
    state = jax.tree.map(_on, state, places)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean((batch @ params["w"]) ** 2)

    def zero1(params: Any, state: Any, batch: Any) -> Any:
        return _step(optimizer)(params, state, jax.grad(loss)(params, batch))

    def by_hand(params: Any, state: Any, batch: Any) -> Any:
        gradients = jax.tree.map(
            lambda g: jax.lax.psum_scatter(g, "data", tiled=True) / len(devices),
            jax.grad(loss)(params, batch),
        )
        rows = shape[0] // len(devices)
        start = jax.lax.axis_index("data") * rows
        mine = jax.tree.map(lambda p: jax.lax.dynamic_slice_in_dim(p, start, rows), params)
        mine, state = _step(optimizer)(mine, state, gradients)
        gathered = jax.tree.map(lambda p: jax.lax.all_gather(p, "data", tiled=True), mine)
        return gathered, state

    if way == "zero1":
        step = jax.jit(zero1, donate_argnums=(0, 1), out_shardings=(_places(params), places))
    else:
        specs = jax.tree.map(lambda place: place.spec, places)
        step = jax.jit(
            jax.shard_map(
                by_hand,
                mesh=mesh,
                in_specs=(PartitionSpec(), specs, PartitionSpec("data")),
                out_specs=(PartitionSpec(), specs),
                check_vma=False,
            ),
            donate_argnums=(0, 1),
        )
    compiled: Any = step.lower(params, state, batch).compile()
    moved: Counter[str] = Counter()
    pattern = r"= (.*?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)"
    for result, kind in re.findall(pattern + r"(?:-start)?\(", compiled.as_text()):
        largest = max(_sizes(result), default=0)
        if largest > 1:  # the loss is one number
            moved[kind] += largest
    return {kind: round(size / math.prod(shape), 3) for kind, size in sorted(moved.items())}


def _places(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _sizes(result: str) -> list[int]:
    """Numbers of elements of the arrays in the type of a result."""
    return [
        math.prod(map(int, dimensions.split(",")))
        for dimensions in re.findall(r"f32\[([\d,]+)\]", result)
    ]


# What is left of it.


def compiled_table(rows: list[dict[str, Any]]) -> str:
    """A row for each device, tree and optimizer."""
    cycles = {
        (r["device"], r["tree"]): r["cycles"] for r in rows if r["optimizer"].startswith("op")
    }

    def relative(row: dict[str, Any]) -> str:
        reference = cycles[row["device"], row["tree"]]
        return f"{row['cycles'] / reference:.2f}" if reference else ""

    return pages.table(
        (
            "device",
            "parameters",
            "optimizer",
            "passes over a leaf",
            "bytes per parameter",
            "temporary bytes",
            "cycles, `optax.amsgrad` = 1",
        ),
        [
            (
                row["device"],
                row["tree"],
                row["optimizer"],
                f"{row['passes']:g}",
                f"{row['bytes']:.1f}" if row["bytes"] else "",
                f"{row['temporary']:.1f}",
                relative(row),
            )
            for row in rows
        ],
    )


def collectives_table(rows: list[dict[str, Any]]) -> str:
    """What 16 chips exchange in a step."""
    kinds = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
    return pages.table(
        ("16 chips", "program", *kinds),
        [
            (
                row["device"],
                {"zero1": "`zero1_shardings`", "psum_scatter": "`psum_scatter` by hand"}[
                    row["way"]
                ],
                *(f"{row['moved'].get(kind, 0):g}" for kind in kinds),
            )
            for row in rows
        ],
    )


def main(quick: bool) -> None:
    print("What XLA makes of a donated step of update and apply, without the hardware")
    found = list(devices())
    if not found:
        raise SystemExit("no compiler for TPU or CUDA is installed: make compiled")
    results: dict[str, Any] = {}
    results |= machine.describe("amsgrad_jax", "jax", "optax", "libtpu", "jax-cuda12-plugin")
    results["rows"], results["collectives"] = [], []
    for name, device in found[:1] if quick else found:
        for tree, shapes in trees(quick).items():
            for kind, optimizer in OPTIMIZERS.items():
                row = {"device": name, "tree": tree, "optimizer": kind}
                results["rows"].append(row | made(optimizer, shapes, device)._asdict())
                print(", ".join(map(str, results["rows"][-1].values())), flush=True)
    tpus = [name for name, _ in found if name in TPUS]
    for name in tpus[:1] if quick else tpus:
        for way in ("zero1", "psum_scatter"):
            moved = collectives(tpu(TPUS[name][1]), way)
            results["collectives"].append({"device": name, "way": way, "moved": moved})
            print(name, way, moved, flush=True)
    print(f"\n{compiled_table(results['rows'])}\n\n{collectives_table(results['collectives'])}\n")
    if not quick:
        publish(results)


def publish(results: dict[str, Any]) -> None:
    """Writes the results, and refreshes the tables of the two pages."""
    versions = ", ".join(
        f"{name} {results[name]}"
        for name in ("jax", "libtpu", "jax-cuda12-plugin")
        if name in results
    )
    made_with = f"\n\nCompiled on {results['date']} with {versions}."
    page = pages.DOCS / "many_devices.md"
    table = {"collectives": collectives_table(results["collectives"]) + made_with}
    refreshed = pages.refresh(page.read_text(), table)
    tables = {"compiled": compiled_table(results["rows"]) + made_with}
    pages.publish("benchmarks.md", "compiled", results, tables, {})
    page.write_text(refreshed)
