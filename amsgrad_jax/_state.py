"""The two optimizer states, full and packed: their moments leaf by leaf, and their place in a tree.

Each storage has its own class, so that the structure of a state tells the storage. Code that reads
moments uses `leaf_moments`, code that changes them `map_moments`; both accept either class. The
states inside the state of a chain, a mask, a partition or a wrapper are found by `find_states`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _names, _packed
from amsgrad_jax._rule import Moments

Storage: TypeAlias = Literal["full", "packed"]
"""How a state stores its moments: in 12 or in 4 bytes per parameter."""


class ScaleByAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad` with ``storage="full"``; field names as in Optax.

    Args:
      count: Number of steps taken so far, an int32 scalar.
      mu: Exponential moving average of the gradients: a tree like the parameters, in float32
        (float64 for float64 parameters).
      nu: Exponential moving average of the squared gradients, without bias correction: a tree
        like the parameters, real also for complex ones.
      nu_max: Running maximum of ``nu`` (in the ``"optax"`` convention, of the
        bias-corrected ``nu``): a tree like ``nu``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


class PackedAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad` with ``storage="packed"``.

    Args:
      count: Number of steps taken so far, an int32 scalar.
      packed: The three moments of each parameter, quantized into one uint32 word: a tree like
        the parameters. The words are bit patterns, not values: :func:`convert_storage` decodes
        them into a :class:`ScaleByAmsgradState`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    packed: optax.Updates


AmsgradState: TypeAlias = ScaleByAmsgradState | PackedAmsgradState
KINDS = (ScaleByAmsgradState, PackedAmsgradState)


def resolve(storage: Any) -> Storage:
    """Returns the storage, or raises if there is none of that name."""
    return cast(Storage, _checks.literal("storage", storage, get_args(Storage)))


def storage_of(state: AmsgradState) -> Storage:
    """The storage that makes such a state."""
    return "packed" if isinstance(state, PackedAmsgradState) else "full"


def zeros(params: Any, storage: Storage) -> AmsgradState:
    """The state before the first gradient."""
    count = jnp.zeros((), jnp.int32)
    if storage == "packed":
        check_real("params", params)
        words = jax.tree.map(lambda param: jnp.zeros_like(param, _packed.DTYPE), params)
        return PackedAmsgradState(count, words)

    # Three separate trees: a buffer shared by two moments could not be donated.
    return ScaleByAmsgradState(
        count,
        *(
            jax.tree.map(lambda p, i=i: jnp.zeros_like(p, moment_dtypes(p)[i]), params)
            for i in range(3)
        ),
    )


def like_params(state: AmsgradState) -> Any:
    """A tree of the state that has the structure and the shapes of the parameters."""
    return state.packed if isinstance(state, PackedAmsgradState) else state.mu


# What a state holds for one leaf: its words, or its three moments.
Stored: TypeAlias = jax.Array | Moments


def stored_leaves(state: AmsgradState) -> list[tuple[Any, Stored]]:
    """The path of every leaf, and what is stored for it."""
    return list(zip(paths(state), without_paths(state), strict=True))


def paths(state: AmsgradState) -> list[Any]:
    """The path of every leaf; of a thousand they take longer to make than a step to trace."""
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(like_params(state))]


def without_paths(state: AmsgradState) -> list[Stored]:
    """What is stored for every leaf."""
    stored = [jax.tree.leaves(tree) for tree in state[1:]]
    if isinstance(state, PackedAmsgradState):
        return stored[0]
    return [Moments(*moments) for moments in zip(*stored, strict=True)]


def numbers(stored: Stored) -> Moments:
    """The moments of one leaf as numbers."""
    return stored if isinstance(stored, Moments) else _packed.unpack(stored)


def from_leaves(
    count: jax.Array, stored: list[Stored], storage: Storage, unflatten: Callable[[Any], Any]
) -> AmsgradState:
    """The state made of what is stored for each leaf; the inverse of :func:`stored_leaves`."""
    if storage == "packed":
        return PackedAmsgradState(count, unflatten(stored))
    return ScaleByAmsgradState(
        count, *(unflatten([getattr(leaf, name) for leaf in stored]) for name in Moments._fields)
    )


def leaf_moments(state: AmsgradState) -> list[tuple[Any, Moments]]:
    """The path and the moments, as numbers, of every leaf."""
    check(state, storage_of(state))
    return [(path, numbers(stored)) for path, stored in stored_leaves(state)]


def map_moments(
    function: Callable[[Any, Moments], Moments],
    state: AmsgradState,
    storage: Storage | None = None,
) -> AmsgradState:
    """The state with other moments, made of the path and the moments of each leaf.

    In a packed state they are rounded to nearest. None for ``storage`` keeps that of ``state``.
    """
    storage = storage_of(state) if storage is None else storage
    moments = [function(path, before) for path, before in leaf_moments(state)]
    stored: list[Any] = moments
    if storage == "packed":
        check_real("the moments", like_params(state))
        stored = [_packed_with_room(before) for before in moments]
    unflatten = jax.tree.structure(like_params(state)).unflatten
    return from_leaves(state.count, stored, storage, unflatten)


# One program per shape: outside of jit, op by op, the temporaries of all leaves would add up.
@jax.jit
def _packed_with_room(moments: Moments) -> jax.Array:
    """The words of moments with a maximum that is not below ``nu``, as after a reset."""
    # A packed maximum can be up to 1/32 below nu, of the root; such a one stays as it is.
    is_below = moments.nu > 1.07 * moments.nu_max
    nu_max = jnp.where(is_below, moments.nu, moments.nu_max)
    return _packed.pack(moments._replace(nu_max=nu_max))


# What is checked of a state.


def check(state: Any, storage: Storage, gradients: Any = None) -> None:
    """Raises unless this is a state of that storage whose dtypes were not changed."""
    if not isinstance(state, KINDS):
        raise TypeError(_refusal(state, gradients))
    if storage_of(state) != storage:
        raise TypeError(
            f"state is a {type(state).__name__}, of storage={storage_of(state)!r}, but the "
            f"optimizer has storage={storage!r}: convert it with "
            f"amsgrad_jax.convert_storage(state, {storage!r})"
        )
    for field, tree in state._asdict().items():
        kind = "count" if field == "count" else storage
        if all(_was_cast(jnp.result_type(leaf), kind) is None for leaf in jax.tree.leaves(tree)):
            continue
        for name, leaf in _names.named_leaves(tree):
            dtype = jnp.result_type(leaf)
            if expected := _was_cast(dtype, kind):
                where = f" of {name!r}" if name else ""
                raise TypeError(
                    f"state.{field}{where} is {dtype}, expected {expected}: the state was cast. "
                    "Cast parameters, not states; amsgrad_jax.convert_storage converts a state to "
                    "the other storage"
                )


@functools.cache
def _was_cast(dtype: Any, kind: str) -> str | None:
    """What a leaf of a state should be, if it is not; ``kind`` is a storage, or "count"."""
    if kind == "count":
        return None if jnp.issubdtype(dtype, jnp.integer) else "an integer"
    if kind == "packed":
        return None if dtype == _packed.DTYPE else "uint32"
    return None if dtype == wide(dtype) else "float32 or wider"


def check_chain(state: Any, length: int, gradients: Any) -> None:
    """Raises unless this can be the state of a chain of so many links."""
    is_chain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
    if not is_chain or len(state) != length:
        raise TypeError(_refusal(state, gradients))


def _refusal(state: Any, gradients: Any) -> str:
    """Why this is no state, and what to do."""
    expected = "state must be what init of this optimizer returned, got"
    if state is None:
        return f"{expected} None: init(params) makes the first one"
    kinds, got = _kinds(state), f"{expected} {type_names([type(state)])}"
    if find_states(gradients) and not find_states(state):
        return f"{got} and a state as gradients: call update(gradients, state), in this order"
    if kinds & {optax.ScaleByAmsgradState, optax.ScaleByAdamState}:
        return f"{got}, a state of Optax: amsgrad_jax.interop.from_optax converts it"
    if find_states(state):
        return (
            f"{got} of {type_names(kinds - {type(state)})}, the state of another chain or wrapper"
        )
    return f"{got}; amsgrad_jax.interop converts states of other libraries"


def check_one_run(state: Any) -> None:
    """Raises if a state is of several runs, stacked as by ``jax.vmap(optimizer.init)``."""
    if shape := jnp.shape(count_of(state)):
        raise ValueError(
            f"the state is of several runs: its count has shape {shape}, expected (). "
            "Wrap the call in jax.vmap"
        )


def check_real(what: str, tree: Any) -> None:
    """Raises if a leaf is complex, for which a packed word has no room."""
    if not any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree)):
        return
    for name, leaf in _names.named_leaves(tree):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{what} must be real for storage='packed', but the leaf {name!r} is "
                f"{_checks.describe(leaf)}: optax.contrib.split_real_and_imaginary makes two real "
                "leaves of it"
            )


def wide(dtype: Any) -> Any:
    """The dtype of the moments, and of the arithmetic, for gradients of that dtype."""
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32:
        return jnp.dtype(dtype)
    return jnp.dtype("float32")


def moment_dtypes(param: Any) -> tuple[Any, Any, Any]:
    """The dtypes of ``mu``, ``nu`` and ``nu_max`` of a parameter."""
    dtype = wide(jnp.result_type(param))
    real = jnp.finfo(dtype).dtype  # also of complex parameters
    return dtype, real, real


# Where states are.


def find_states(tree: Any) -> list[tuple[str, AmsgradState]]:
    """Every state of AMSGrad in a tree, with the name of its place there."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state)
    return [(_names.of_path(path), node) for path, node in nodes if is_state(node)]


def require_states(tree: Any) -> list[tuple[str, AmsgradState]]:
    """:func:`find_states`, or raises if there is none."""
    found = find_states(tree)
    if not found:
        hint = "amsgrad_jax.interop converts states of other libraries"
        keys = {key for path, _ in jax.tree_util.tree_leaves_with_path(tree) for key in path}
        if keys & {jax.tree_util.DictKey("nu_max"), jax.tree_util.DictKey("packed")}:
            hint = (
                "it has the fields of one without their class, as in nnx.state(optimizer): "
                "pass the state itself, for an nnx.Optimizer its opt_state"
            )
        raise ValueError(
            "found no amsgrad_jax.ScaleByAmsgradState or PackedAmsgradState in the state, only "
            f"{type_names(_kinds(tree))}; {hint}"
        )
    return found


def count_of(state: Any) -> jax.Array:
    """The number of steps; in a state of `flax.nnx.Optimizer` it is inside of a Variable."""
    (count,) = jax.tree.leaves(state.count)
    return count


def map_states(function: Callable[[AmsgradState], AmsgradState], state: Any) -> Any:
    """The tree with ``function`` of every state of AMSGrad in it."""
    require_states(state)
    return jax.tree.map(
        lambda node: function(node) if is_state(node) else node, state, is_leaf=is_state
    )


def is_state(node: Any) -> bool:
    """Whether this is a state of AMSGrad, and not a tree with some in it."""
    return isinstance(node, KINDS)


def _kinds(state: Any) -> set[type]:
    """The types of states in a tree."""
    kinds = {type(state)}

    def see(node: Any) -> bool:  # is asked about every node, from the root down
        if hasattr(node, "_fields"):
            kinds.add(type(node))
        return False

    jax.tree.leaves(state, is_leaf=see)
    return kinds


def type_names(kinds: Iterable[type]) -> str:
    """Types for an error, with their package: optax has a ScaleByAmsgradState, too."""
    return ", ".join(
        sorted(
            f"{kind.__module__.split('.')[0]}.{kind.__name__}".removeprefix("builtins.")
            for kind in kinds
        )
    )
