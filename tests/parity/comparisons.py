"""What is compared with what: each library's optimizer, and ours with the same meaning.

The tests walk through these lists.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

import amsgrad_jax
from tests.parity import errors, record, regression, sequences, trajectories
from tests.parity.cases import CASES, EVERYTHING, Case, Group


class Comparison(NamedTuple):
    """Two ways to the same trajectory; both take a dtype."""

    library: str
    variant: str
    ours: Callable[[str], np.ndarray]
    theirs: Callable[[str], errors.Reference]
    tolerances: Mapping[str, float]  # by dtype; it has the dtypes to compare in

    def __str__(self) -> str:
        return self.variant

    def errors(self, dtype: str) -> np.ndarray:
        """The relative errors: a row for each step, a column for each parameter."""
        theirs = self.theirs(dtype)
        return errors.relative(self.ours(dtype)[theirs.steps], theirs)


def pairs(comparisons: Iterable[Comparison]) -> list[tuple[Comparison, str]]:
    """Each comparison with each of its dtypes."""
    return [(c, dtype) for c in comparisons for dtype in c.tolerances]


def transformation(case: Case) -> optax.GradientTransformation:
    """The meaning of a PyTorch optimizer with groups, in our words."""

    def of_group(group: Group) -> optax.GradientTransformation:
        b1, b2 = group.betas
        if case.optimizer == "AdamW":
            return amsgrad_jax.amsgradw(
                group.lr, b1, b2, group.eps, weight_decay=group.weight_decay
            )
        return optax.chain(
            optax.add_decayed_weights(group.weight_decay),
            amsgrad_jax.amsgrad(group.lr, b1, b2, group.eps),
        )

    if len(case.groups) == 1:
        return of_group(case.groups[0])
    return optax.partition(
        {i: of_group(group) for i, group in enumerate(case.groups)},
        {name: i for i, group in enumerate(case.groups) for name in group.names},
    )


@functools.cache
def _ours(name: str, dtype: str) -> np.ndarray:
    return trajectories.of_optax(
        transformation(CASES[name]), sequences.gradients(), sequences.start(), dtype
    )


@functools.cache
def _masked(dtype: str) -> np.ndarray:
    decaying, _ = CASES["AdamW, some without decay"].groups
    optimizer = amsgrad_jax.amsgradw(
        decaying.lr,
        weight_decay=decaying.weight_decay,
        mask={name: name in decaying.names for name in EVERYTHING},
    )
    return trajectories.of_optax(optimizer, sequences.gradients(), sequences.start(), dtype)


def _tolerances_of(case: Case) -> dict[str, float]:
    return errors.tolerances(decay=case.optimizer == "AdamW")


TORCH = [
    Comparison(
        "torch",
        name,
        functools.partial(_ours, name),
        functools.partial(record.torch_now, name),
        _tolerances_of(case),
    )
    for name, case in CASES.items()
]
TORCH.append(TORCH[-1]._replace(variant="AdamW, mask", ours=_masked))
TORCH += [
    Comparison(
        "torch",
        f"{name}, {option}",
        functools.partial(_ours, name),
        functools.partial(record.torch_now, name, **{option: True}),
        {"float64": errors.DOUBLE},
    )
    for name, option in itertools.product(("Adam, groups", "AdamW, groups"), ("foreach", "fused"))
]
TORCH += [
    Comparison(
        "torch",
        f"{name}, a network's gradients",
        lambda dtype, optimizer=optimizer: regression.of_optax(optimizer),
        lambda dtype, name=name: errors.reference(regression.of_torch(name)),
        {"float64": 1e-10},  # wider, as errors come back in the gradients
    )
    for name, optimizer in (
        ("Adam", amsgrad_jax.amsgrad(regression.LR)),
        ("AdamW", amsgrad_jax.amsgradw(regression.LR)),
    )
]

RECORDED = [
    Comparison(
        "recorded torch",
        name,
        functools.partial(_ours, name),
        functools.partial(record.recorded, name),
        _tolerances_of(case),
    )
    for name, case in CASES.items()
]


def _beside(
    library: str,
    variant: str,
    theirs: Callable[[Any, Any, str], np.ndarray],
    ours: optax.GradientTransformation,
    tolerances: Mapping[str, float],
    gradients: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    given = (gradients or sequences.gradients(), sequences.start())
    return Comparison(
        library,
        variant,
        functools.cache(lambda dtype: trajectories.of_optax(ours, *given, dtype)),
        functools.cache(lambda dtype: errors.reference(theirs(*given, dtype))),
        tolerances,
    )


def _with_keras(variant: str, make: Callable[[Any], Any], *ours_and_tolerances: Any) -> Comparison:
    theirs = functools.partial(trajectories.of_keras, make)
    return _beside("keras", variant, theirs, *ours_and_tolerances)


def _with_optax(
    variant: str, optimizer: optax.GradientTransformation, *ours_and_tolerances: Any
) -> Comparison:
    theirs = functools.partial(trajectories.of_optax, optimizer)
    return _beside("optax", variant, theirs, *ours_and_tolerances)


# Keras holds the learning rate in float32 also for float64 parameters, so that 1e-3
# would be off by 5e-8 in both dtypes; a power of two is not.
_KERAS_LR = 2.0**-10


def _keras_adamw_with_exclusions(keras: Any) -> Any:
    optimizer = keras.optimizers.AdamW(_KERAS_LR, weight_decay=0.1, amsgrad=True)
    optimizer.exclude_from_weight_decay(var_names=["scalar", "vector"])
    return optimizer


KERAS = [
    _with_keras(
        "Adam",
        lambda keras: keras.optimizers.Adam(_KERAS_LR, amsgrad=True),
        amsgrad_jax.amsgrad(_KERAS_LR, eps=1e-7, convention="keras"),
        errors.tolerances(rounded_b2=0.999),
    ),
    _with_keras(
        "Adam, other betas and eps",
        lambda keras: keras.optimizers.Adam(2.0**-6, 0.8, 0.99, 1e-3, amsgrad=True),
        amsgrad_jax.amsgrad(2.0**-6, 0.8, 0.99, 1e-3, convention="keras"),
        errors.tolerances(rounded_b2=0.99),
    ),
    _with_keras(
        "AdamW",
        lambda keras: keras.optimizers.AdamW(_KERAS_LR, weight_decay=0.1, amsgrad=True),
        amsgrad_jax.amsgradw(_KERAS_LR, eps=1e-7, weight_decay=0.1, convention="keras"),
        errors.tolerances(rounded_b2=0.999),
    ),
    _with_keras(
        "AdamW, some without decay",
        _keras_adamw_with_exclusions,
        amsgrad_jax.amsgradw(
            _KERAS_LR,
            eps=1e-7,
            weight_decay=0.1,
            mask={name: name not in ("scalar", "vector") for name in EVERYTHING},
            convention="keras",
        ),
        errors.tolerances(rounded_b2=0.999),
    ),
]


OPTAX = [
    _with_optax(
        "amsgrad",
        optax.amsgrad(1e-3),
        amsgrad_jax.amsgrad(1e-3, convention="optax"),
        errors.tolerances(rounded_b2=0.999),
    ),
    _with_optax(
        "amsgrad, other betas and eps",
        optax.amsgrad(0.01, 0.8, 0.99, 1e-3, 1e-6),
        amsgrad_jax.amsgrad(0.01, 0.8, 0.99, 1e-3, 1e-6, convention="optax"),
        errors.tolerances(rounded_b2=0.99),
    ),
    _with_optax(
        "amsgrad, complex",
        optax.amsgrad(1e-3),
        amsgrad_jax.amsgrad(1e-3, convention="optax"),
        {"complex128": errors.DOUBLE},
        {name: array + 1j * array[::-1] for name, array in sequences.gradients().items()},
    ),
    *(
        _with_optax(
            f"nadam, as nesterov of {convention}",
            optax.nadam(1e-3),
            amsgrad_jax.amsgrad(1e-3, convention=convention, nesterov=True),
            errors.tolerances(rounded_b2=0.999),
            # The second moment never falls, so that its maximum is its last value.
            sequences.growing_gradients(),
        )
        for convention in ("pytorch", "optax")
    ),
]

# Optax 0.2.5 cannot leave the bias corrections out yet.
OPTAX_PAPER = []
if "bias_correction_mu" in inspect.signature(optax.scale_by_amsgrad).parameters:
    OPTAX_PAPER.append(
        _with_optax(
            "amsgrad, as in the paper",
            optax.chain(
                optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False),
                optax.scale_by_learning_rate(1e-3),
            ),
            amsgrad_jax.amsgrad(1e-3, convention="paper"),
            errors.tolerances(),
        )
    )
