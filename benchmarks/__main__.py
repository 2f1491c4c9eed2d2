"""The command line: runs the benchmarks and prints one table for each."""

import argparse
import os

from benchmarks import accuracy, compiled, machine, potential, section5, speed, spike, storage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help="accuracy, speed (the default; half an hour), "
        "compiled, potential, section5, spike, storage",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that it runs, judges nothing"
    )
    arguments = parser.parse_args()
    default = {"accuracy": accuracy, "speed": speed}  # the others take longer
    others = {
        "compiled": compiled,
        "potential": potential,
        "section5": section5,
        "spike": spike,
        "storage": storage,
    }
    parts = default | others
    unknown = set(arguments.names) - set(parts)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(parts)}")
    # JAX would take the memory of a GPU that PyTorch needs a part of.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(", ".join(f"{k} {v}" for k, v in machine.describe("jax", "optax").items()), "\n")
    for name in arguments.names or default:
        parts[name].main(arguments.quick)


if __name__ == "__main__":
    main()
