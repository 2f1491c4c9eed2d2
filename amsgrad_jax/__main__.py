"""The command line: `python -m amsgrad_jax`, also installed as `amsgrad-jax`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import amsgrad_jax
from amsgrad_jax import _checks, _plan, demo
from amsgrad_jax._state import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m amsgrad_jax", description=amsgrad_jax.__doc__)
    parser.add_argument("--version", action="version", version=amsgrad_jax.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_plan(commands)
    arguments = parser.parse_args(argv)
    if "command" not in arguments:
        parser.print_help()
        return 0
    return arguments.command(arguments)


def _add_demo(commands: Any) -> None:  # argparse keeps the type of its subparsers private
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="compare Adam and AMSGrad on three experiments, with figures",
        description=demo.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="run only a small part of the steps, as a check"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-results"),
        metavar="DIR",
        help="folder for the figures and results.json, created if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(demo.EXPERIMENTS),
        default=tuple(demo.EXPERIMENTS),
        metavar="NAME",
        help="run only these experiments: %(choices)s",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="random seed of all data, weights and batches (default: %(default)s)",
    )

    def run(arguments: argparse.Namespace) -> int:
        needed = ("matplotlib", "sklearn", "tqdm")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            parser.error(f"{', '.join(missing)} not found: {_checks.extra('demo')}")
        out: Path = arguments.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            # Better to learn now than after the work that nothing can be written there.
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            parser.error(f"argument --out: {str(out)!r} is not a usable folder: {error.strerror}")
        demo.run(arguments.only, out=out, seed=arguments.seed, quick=arguments.quick)
        return 0

    parser.set_defaults(command=run)


def _add_plan(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="print the memory per device of a large model's parameters and optimizer state",
        description=_plan.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--params",
        type=_size,
        default=7e9,
        metavar="N",
        help="approximate number of parameters, such as 7e9 or 70B (default: 7e9)",
    )
    parser.add_argument(
        "--devices",
        type=_integers(1, _checks.MOST_DEVICES),
        nargs="+",
        default=[(8, 64, 512, 4096)],
        metavar="N",
        help="numbers of devices, separated by spaces or commas (default: 8 64 512 4096)",
    )
    parser.add_argument(
        "--storage",
        nargs="+",
        choices=(known := get_args(Storage)),
        default=known,
        metavar="NAME",
        help="storages of the optimizer state to compare: %(choices)s (default: all)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of parameters and gradients: %(choices)s (default: %(default)s)",
    )

    def run(arguments: argparse.Namespace) -> int:
        devices = [number for numbers in arguments.devices for number in numbers]
        table = _plan.table(arguments.params, devices, arguments.storage, arguments.dtype)
        print(*table, sep="\n")
        return 0

    parser.set_defaults(command=run)


# What people write behind a number of parameters.
_UNITS = {"M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def _size(text: str) -> float:
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        size = unit * float(text if unit == 1 else text[:-1])
    except ValueError:  # argparse would show the name of this function
        size = math.nan
    if not _plan.SMALLEST <= size <= _plan.LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be a number from {_plan.SMALLEST:.0e} to {_plan.LARGEST:.0e}, such as 7e9, 350M "
            f"or 70B, got {text!r}"
        )
    return size


def _integers(first: int, last: int) -> Callable[[str], list[int]]:
    parse = _integer(first, last)
    return lambda text: [parse(part) for part in text.removesuffix(",").split(",")]


def _integer(first: int, last: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = first - 1
        if not first <= number <= last:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {first} to {last}, got {text!r}"
            )
        return number

    return parse


if __name__ == "__main__":
    sys.exit(main())
