"""What is compared with PyTorch: hyperparameters and parameter groups, as data."""

from __future__ import annotations

from typing import NamedTuple

from tests.parity import sequences

EVERYTHING = tuple(sequences.SHAPES)


class Group(NamedTuple):
    """A PyTorch parameter group: some of the arrays, and their hyperparameters."""

    names: tuple[str, ...] = EVERYTHING
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class Case(NamedTuple):
    """One optimizer of PyTorch, always with ``amsgrad=True``."""

    optimizer: str  # Adam, whose weight decay is an L2 penalty, or AdamW
    groups: tuple[Group, ...] = (Group(),)


CASES = {
    "Adam": Case("Adam"),
    "Adam, other betas and eps": Case("Adam", (Group(lr=0.01, betas=(0.8, 0.99), eps=1e-3),)),
    "Adam, no momentum": Case("Adam", (Group(betas=(0.0, 0.99)),)),
    "Adam, weight decay": Case("Adam", (Group(weight_decay=0.1),)),
    "Adam, groups": Case(
        "Adam",
        (
            Group(("matrix", "scalar")),
            Group(("vector", "single"), lr=0.02, betas=(0.7, 0.9), eps=1e-6, weight_decay=0.01),
            Group(("tensor",), lr=1e-4, betas=(0.95, 0.9999), weight_decay=1.0),
        ),
    ),
    "AdamW": Case("AdamW", (Group(weight_decay=0.01),)),
    "AdamW, groups": Case(
        "AdamW",
        (
            Group(("matrix", "tensor"), lr=0.01, weight_decay=0.5),
            Group(("vector", "single"), lr=0.003, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
            Group(("scalar",), weight_decay=0.0),
        ),
    ),
    "AdamW, some without decay": Case(
        "AdamW",
        (
            Group(("matrix", "tensor"), lr=0.01, weight_decay=0.5),
            Group(("scalar", "single", "vector"), lr=0.01, weight_decay=0.0),
        ),
    ),
}
