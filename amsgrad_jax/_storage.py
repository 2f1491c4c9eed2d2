"""How the moments are held between steps: the presets, and the way in and out.

A step decodes what is stored, applies the rule, and encodes the result. `empty` makes the
first stored moments, `decode` and `encode` are the way out and in. A codec knows about one
moment; what concerns several, or the whole leaf, is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from amsgrad_jax import _checks, _rounding, codecs
from amsgrad_jax.codecs import EXACT, Codec


class Moments(NamedTuple):
    """The three moments of one array."""

    mu: jax.Array
    nu: jax.Array
    nu_max: jax.Array


# The count of the step and the salt of the leaf, from which chance is made.
Seed: TypeAlias = tuple[jax.Array, jax.Array | np.uint32]


class LeafCodecs(NamedTuple):
    """What the three moments of one array are held by."""

    mu: Codec
    nu: Codec
    nu_max: Codec


@dataclass(frozen=True)
class Storage:
    """A codec for each of the three moments.

    =============== ============== ================ ========== ==================
    preset          ``mu``         ``nu``           ``nu_max`` bytes a parameter
    =============== ============== ================ ========== ==================
    :data:`FULL`    ``EXACT``      ``EXACT``        ``EXACT``  12 (24 in float64)
    :data:`COMPACT` ``BFLOAT16``   ``UNSIGNED16``   ``LOG8``   5
    :data:`TINY`    ``RATIO8``     ``UNSIGNED16``   ``LOG8``   4
    =============== ============== ================ ========== ==================

    The codecs are those of :mod:`amsgrad_jax.codecs`. Of complex parameters ``mu`` is always
    held exactly: 11 bytes instead of 16 in both presets.

    Args:
      mu: Codec of the average of gradients.
      nu: Codec of the average of squared gradients.
      nu_max: Codec of its maximum; not a stochastic one, for the maximum would collect
        every rounding upwards.
      full_below: Leaves with fewer elements are held exactly, such as biases and norms. To
        choose leaves in another way, use two transformations and ``optax.partition``.

    Raises:
      TypeError: If a codec is no :class:`~amsgrad_jax.codecs.Codec`, or ``full_below`` no int.
      ValueError: If ``nu_max`` has a stochastic codec, ``nu`` or ``nu_max`` one for a ratio,
        or if ``full_below`` is negative.

    Examples:
      >>> import dataclasses
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> storage = dataclasses.replace(amsgrad_jax.TINY, full_below=100)
      >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
      >>> (state, _) = amsgrad_jax.amsgrad(1e-3, storage=storage).init(params)
      >>> print(state.mu["kernel"].dtype, state.mu["bias"].dtype)
      int8 float32
    """

    mu: Codec
    nu: Codec
    nu_max: Codec
    full_below: int = 0

    def __post_init__(self) -> None:
        for name in Moments._fields:
            codec = getattr(self, name)
            if not isinstance(codec, Codec):
                raise TypeError(f"{name} must be an amsgrad_jax.codecs.Codec, got {codec!r}")
            if name != "mu" and codec.ratio_bound is not None:
                raise ValueError(f"{name} cannot have a codec for mu/√nu, got {codec!r}")
        if self.nu_max.stochastic:
            raise ValueError(
                f"nu_max must have a codec that rounds to nearest, got {self.nu_max!r}: "
                "a maximum collects every rounding upwards"
            )
        if isinstance(self.full_below, bool) or not isinstance(self.full_below, int):
            raise TypeError(f"full_below must be an int, got {self.full_below!r}")
        if self.full_below < 0:
            raise ValueError(f"full_below must not be negative, got {self.full_below}")


FULL: Final = Storage(mu=EXACT, nu=EXACT, nu_max=EXACT)
"""12 bytes a parameter; the moments as they were computed."""

COMPACT: Final = Storage(mu=codecs.BFLOAT16, nu=codecs.UNSIGNED16, nu_max=codecs.LOG8)
"""5 bytes a parameter; needs nothing of ``b1`` and ``b2``."""

TINY: Final = Storage(mu=codecs.RATIO8, nu=codecs.UNSIGNED16, nu_max=codecs.LOG8)
"""4 bytes a parameter; ``mu`` is held as a share of √nu, which needs ``b1**2 < b2``."""

_NAMED: Final = {"full": FULL, "compact": COMPACT, "tiny": TINY}
PRESETS: Final = tuple(_NAMED.values())


def resolve(storage: str | Storage) -> Storage:
    """Returns the storage that a user named, or the one that they built."""
    return _checks.one_of("storage", storage, Storage, _NAMED)


def check_decay_rates(storage: Storage, b1: Any, b2: Any) -> None:
    """Raises if ``mu/√nu`` can be larger than its codec allows; only numbers are looked at."""
    bound = storage.mu.ratio_bound
    if bound is None or not isinstance(b1, float) or not isinstance(b2, float):
        return
    room = 1 - b1**2 / b2 if b2 > 0 else 1.0 if b1 == 0 else 0.0
    if room <= 0 or (1 - b1) / math.sqrt((1 - b2) * room) > bound:
        raise ValueError(
            f"b1 = {b1!r} and b2 = {b2!r} do not fit this storage: it holds mu/√nu, for which "
            "b1**2 must be less than b2 and (1-b1)/√((1-b2)(1-b1**2/b2)) at most "
            f"{bound}; storage='compact' takes any b1 and b2"
        )


def for_param(param: jax.typing.ArrayLike | jax.ShapeDtypeStruct, storage: Storage) -> LeafCodecs:
    """The codecs that ``storage`` has for a parameter."""
    if math.prod(jnp.shape(param)) < storage.full_below:
        return LeafCodecs(EXACT, EXACT, EXACT)
    is_complex = jnp.issubdtype(jnp.result_type(param), jnp.complexfloating)
    return LeafCodecs(EXACT if is_complex else storage.mu, storage.nu, storage.nu_max)


def empty(param: jax.typing.ArrayLike | jax.ShapeDtypeStruct, storage: Storage) -> Moments:
    """The stored moments of a parameter that has not had a gradient yet."""
    mu_dtype = jnp.promote_types(jnp.result_type(param), jnp.float32)
    nu_dtype = jnp.finfo(mu_dtype).dtype  # the real dtype, also of complex params
    exact = (mu_dtype, nu_dtype, nu_dtype)
    # Three separate buffers: one shared by two moments could not be donated.
    return Moments(
        *(
            jnp.zeros_like(param, codec.dtype or dtype)
            for codec, dtype in zip(for_param(param, storage), exact, strict=True)
        )
    )


def of_leaf(storage: Storage | None, stored: Moments, path: Any) -> LeafCodecs:
    """The codecs of one stored leaf, or raises if its dtypes are those of another storage.

    None for ``storage`` stands for the presets and all that is mixed from them.
    """
    candidates = PRESETS if storage is None else (storage,)
    may_be_exact = any(candidate.full_below for candidate in candidates)

    def of_moment(name: str) -> Codec:
        dtype = jnp.result_type(getattr(stored, name))
        known = {getattr(candidate, name) for candidate in candidates}
        for codec in known:
            if codec.dtype is not None and dtype == codec.dtype:
                return codec
        is_exact = dtype == jnp.promote_types(dtype, jnp.float32)
        if is_exact and (EXACT in known or may_be_exact or jnp.iscomplexobj(stored.mu)):
            return EXACT
        expected = " or ".join(sorted(codec.dtype or "float32 or wider" for codec in known))
        raise TypeError(
            f"the state holds {name} at {_checks.at(path)} as {dtype}, but the storage has it as "
            f"{expected}: give the storage that made the state, or change the state with "
            "amsgrad_jax.convert_storage"
        )

    return LeafCodecs(*map(of_moment, LeafCodecs._fields))


def working_dtype(stored: Moments, held: LeafCodecs, dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The real dtype to compute in: that of exact moments, else of ``dtype`` or float32."""
    if held.nu is EXACT:
        return stored.nu.dtype
    return jnp.finfo(jnp.promote_types(dtype, jnp.float32)).dtype


def decode(stored: Moments, held: LeafCodecs, dtype: jnp.dtype) -> Moments:
    """What the rule computes with: moments in the real ``dtype``, or its complex one."""
    nu = held.nu.decode(stored.nu).astype(dtype)
    mu = held.mu.decode(stored.mu)
    if held.mu.ratio_bound is not None:
        mu = jnp.where(mu == 0, mu, mu * jnp.sqrt(nu))  # 0, also where nu is infinite
    nu_max = held.nu_max.decode(stored.nu_max).astype(dtype)
    return Moments(mu.astype(jnp.promote_types(mu.dtype, dtype)), nu, nu_max)


def encode(fresh: Moments, held: LeafCodecs, seed: Seed | None = None) -> Moments:
    """What is kept until the next step.

    With a seed averages are rounded by chance. Without, all is rounded to nearest: for a
    change of storage, which happens once.
    """
    if all(codec is EXACT for codec in held):
        return fresh
    fresh = _rounding.not_differentiable(fresh)
    bits_mu = bits_nu = _rounding.NEAREST
    if seed is not None:
        count, salt = seed
        hashed = _rounding.hashed_index(fresh.nu, salt, count)
        bits_mu = _rounding.at_step(hashed, count, _rounding.SILVER)
        # The halves swapped: other bits than those of mu.
        bits_nu = _rounding.at_step(hashed << 16 | hashed >> 16, count, _rounding.GOLDEN)
    nu = _write(held.nu, fresh.nu, bits_nu)
    mu = fresh.mu
    if held.mu.ratio_bound is not None:
        # By the root that decoding will multiply with, so that the product is unbiased.
        root = jnp.sqrt(held.nu.decode(nu)).astype(mu.dtype)
        mu = jnp.where(root == 0, jnp.zeros_like(mu), mu / root)
    return Moments(_write(held.mu, mu, bits_mu), nu, _write(held.nu_max, fresh.nu_max, bits_nu))


def _write(codec: Codec, values: jax.Array, bits: jax.Array | np.uint32) -> jax.Array:
    return values if codec is EXACT else codec.encode(values.astype(jnp.float32), bits)
