"""The command line: runs the benchmarks and prints one table for each."""

import argparse
import importlib.metadata
import os
import platform

import jax

from benchmarks import accuracy, section5, speed, spike, storage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help="accuracy, speed (default: these two), section5, spike, storage (half an hour)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that it runs, judges nothing"
    )
    arguments = parser.parse_args()
    default = {"accuracy": accuracy, "speed": speed}  # the others take longer
    parts = default | {"section5": section5, "spike": spike, "storage": storage}
    unknown = set(arguments.names) - set(parts)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(parts)}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    print(
        f"Python {platform.python_version()}, {versions}, on {os.cpu_count()} cores "
        f"({platform.machine()}), jax device: {jax.devices()[0].device_kind}\n"
    )
    for name in arguments.names or default:
        parts[name].main(arguments.quick)


if __name__ == "__main__":
    main()
