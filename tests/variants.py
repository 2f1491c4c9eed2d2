"""Every variant of the optimizer, for tests that all of them must pass."""

import itertools
from typing import NamedTuple

import jax
import jax.experimental
import optax

import amsgrad_jax

# jax.experimental had it before jax did.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

CONVENTIONS = ("paper", "pytorch", "keras", "optax")


class Variant(NamedTuple):
    factory: str
    convention: str
    nesterov: bool

    def __call__(self, learning_rate=1e-2, **kwargs) -> optax.GradientTransformationExtraArgs:
        factory = getattr(amsgrad_jax, self.factory)
        return factory(learning_rate, convention=self.convention, nesterov=self.nesterov, **kwargs)

    def __str__(self) -> str:
        return "-".join([self.factory, self.convention] + ["nesterov"] * self.nesterov)


VARIANTS = [
    Variant(*row) for row in itertools.product(("amsgrad", "amsgradw"), CONVENTIONS, (False, True))
]
