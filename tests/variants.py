"""Every variant of the optimizer, for tests that all of them must pass."""

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
    storage: str = "full"

    def __call__(self, learning_rate=1e-2, **kwargs) -> optax.GradientTransformationExtraArgs:
        factory = getattr(amsgrad_jax, self.factory)
        return factory(learning_rate, **self.settings, **kwargs)

    @property
    def settings(self) -> dict:
        """What is not a number, and so no hyperparameter to inject or to vmap over."""
        return {"convention": self.convention, "nesterov": self.nesterov, "storage": self.storage}

    def __str__(self) -> str:
        return "-".join(
            [self.factory, self.convention, self.storage] + ["nesterov"] * self.nesterov
        )


# Each convention once in each storage: with one factory and with the other, with Nesterov momentum
# and without. All 32 would tell no more: the four are independent.
FULL_VARIANTS = [
    Variant("amsgrad", "paper", False),
    Variant("amsgradw", "pytorch", True),
    Variant("amsgradw", "keras", False),
    Variant("amsgrad", "optax", True),
]
PACKED_VARIANTS = [
    Variant("amsgradw", "paper", True, "packed"),
    Variant("amsgrad", "pytorch", False, "packed"),
    Variant("amsgrad", "keras", True, "packed"),
    Variant("amsgradw", "optax", False, "packed"),
]
VARIANTS = FULL_VARIANTS + PACKED_VARIANTS
