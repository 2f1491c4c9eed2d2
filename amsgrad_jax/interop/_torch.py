"""Conversion of the state of PyTorch's ``Adam`` and ``AdamW``.

PyTorch numbers the parameters of an optimizer; here a parameter has the name of a leaf.
One table, made by `_correspondence`, is used in both directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import optax

from amsgrad_jax import _checks, _names
from amsgrad_jax._alias import amsgrad, amsgradw
from amsgrad_jax._state import ScaleByAmsgradState
from amsgrad_jax._transform import scale_by_amsgrad
from amsgrad_jax.interop import _moments, _pairing
from amsgrad_jax.interop._pairing import some
from amsgrad_jax.interop._torch_files import Key, import_torch, state_dict_of

Transposes: TypeAlias = Mapping[str, Sequence[int]] | Callable[[str, int], Sequence[int] | None]

_MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}


class TorchGroup(NamedTuple):
    """A parameter group of PyTorch's ``Adam`` or ``AdamW``.

    Args:
      paths: Paths of the group's parameters, such as ``"dense/kernel"``.
      arguments: A dict of ``learning_rate``, ``b1``, ``b2`` and ``eps``, for :func:`.amsgrad` and
        :func:`.amsgradw`. The learning rate is that of the group when it was saved; a scheduler
        of PyTorch is not part of an optimizer's state.
      weight_decay: The group's ``weight_decay``; 0 is none.
      decoupled: Whether the weight decay is decoupled, as in ``AdamW``, or an L2 penalty.
    """

    paths: tuple[str, ...]
    arguments: dict[str, Any]
    weight_decay: float
    decoupled: bool


class FromTorch(NamedTuple):
    """Result of :func:`from_torch`.

    Args:
      state: The count and the moments, trees like the parameters.
      groups: The parameter groups, in PyTorch's order.
    """

    state: ScaleByAmsgradState
    groups: tuple[TorchGroup, ...]


def from_torch(
    source: Any,
    params: optax.Params,
    *,
    names: Sequence[str] | None = None,
    rename: _pairing.Rename | None = None,
    transposes: Transposes | None = None,
    key: Key | None = None,
    decoupled: bool | None = None,
    without_max: _moments.WithoutMax = "raise",
) -> FromTorch:
    r"""Converts the state of PyTorch's ``Adam`` or ``AdamW`` with ``amsgrad=True``.

    ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` of each parameter become ``mu``, ``nu``
    and ``nu_max`` of the leaf of its name, in the dtype that ``scale_by_amsgrad().init(params)``
    gives them. A parameter without a state, because it is frozen or unused, needs no leaf. With
    ``convention="pytorch"``, the default, the run continues as it would in PyTorch. The
    parameters themselves are not in an optimizer's checkpoint; convert them in the same way.

    Args:
      source: A ``torch.optim.Optimizer``, its ``state_dict()`` (whose tensors may be
        NumPy arrays, too), or the path of a file that ``torch.save`` wrote of it.
        Files are read with ``weights_only=True``, which runs no code from them.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them.
      names: PyTorch's names of the parameters in the order of its optimizer's groups, as
        :func:`names_of` returns them: of all, or of all that have a state. Not needed if the
        checkpoint has ``param_names`` (the optimizer was built from ``named_parameters()``) or
        the keys of the state dict are names.
      rename: Maps a name of PyTorch to the path of a leaf, such as ``"dense/kernel"``, or to None
        to leave out a parameter that has a state: a function, or a mapping for the names that
        differ. A name without a leaf is then tried with slashes for dots, and without what
        wrappers add: the prefix ``module.``, and ``_orig_mod`` and FSDP's names in any place.
      transposes: The axes that turn PyTorch's array into the leaf, as in
        ``numpy.transpose(tensor, axes)``: a function of the leaf's path and number of axes, such
        as :func:`flax_transposes`, or a mapping from paths. None: the axes are the same.
      key: The key of the optimizer's state dict in the dict ``source``, or in the dict of the
        file, such as ``"optimizer"``; for nested dicts several, such as
        ``("optimizer_states", 0)``.
      decoupled: Whether weight decay is decoupled. Needed only for a state dict with weight decay
        from PyTorch before 2.7, which does not contain it.
      without_max: What to do with parameters of groups with ``amsgrad=False``, which have no
        maximum: ``"raise"``, or ``"use_nu"`` to start the maximum from ``exp_avg_sq``, as if it
        had never been larger.

    Returns:
      The state, on the devices of ``params``, and the parameter groups. Pass the groups to
      :func:`optimizer_of` to build the optimizer, and the state to :func:`set_moments` to put it
      into the state of any chain. Besides ``source``, the state is the only copy of the moments.

    Raises:
      FileNotFoundError: If there is no such file.
      ImportError: If ``source`` is a file and PyTorch is not installed.
      TypeError: If ``source`` is not an optimizer, a state dict or a path.
      ValueError: If the file is damaged or contains code; if the state is not that of Adam,
        or incomplete, or has parameters with different steps; if names and shapes do
        not match the parameters, one to one; or if an option is not supported
        (``maximize``, complex parameters).

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from amsgrad_jax import interop
      >>> moments = dict(exp_avg=np.ones((3, 2)), exp_avg_sq=np.ones((3, 2)))
      >>> state_dict = {  # optimizer.state_dict() of a torch.optim.Adam
      ...     "state": {0: dict(step=7.0, max_exp_avg_sq=np.ones((3, 2)), **moments)},
      ...     "param_groups": [dict(
      ...         params=[0], param_names=["dense.weight"], lr=0.1, betas=(0.9, 0.99),
      ...         eps=1e-8, weight_decay=0.0, amsgrad=True,
      ...     )],
      ... }
      >>> params = {"dense": {"kernel": jnp.zeros((2, 3))}}
      >>> state, groups = interop.from_torch(
      ...     state_dict, params,
      ...     rename={"dense.weight": "dense/kernel"}, transposes=interop.flax_transposes,
      ... )
      >>> groups[0].arguments
      {'learning_rate': 0.1, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-08}
      >>> optimizer = interop.optimizer_of(groups, params)
      >>> opt_state = interop.set_moments(optimizer.init(params), state)
      >>> print(opt_state[0].count, opt_state[0].mu["dense"]["kernel"].shape)
      7 (2, 3)
    """
    _moments.check_without_max(without_max)
    state_dict = state_dict_of(source, key)
    table = _correspondence(state_dict, params, names, rename, transposes)
    groups = tuple(
        _group(number, group, [row.leaf for row in table if row.group == number], decoupled)
        for number, group in enumerate(state_dict["param_groups"])
    )
    count = _count(state_dict["state"], table)
    if count == 0:  # PyTorch makes the moments in the first step
        state: Any = scale_by_amsgrad().init(params)
        return FromTorch(state, groups)
    fields = {field: {} for field in _MOMENTS}
    for row in table:
        entry = dict(state_dict["state"][row.id])
        if not state_dict["param_groups"][row.group]["amsgrad"]:
            # PyTorch keeps the maximum of before it was switched off, and does not use it.
            entry.pop(_MOMENTS["nu_max"], None)
            if without_max == "raise":
                raise ValueError(
                    f"{row.name!r} has no maximum: amsgrad is off in group {row.group}; "
                    "without_max='use_nu' starts the maximum from 'exp_avg_sq'"
                )
            if _MOMENTS["nu"] in entry:
                entry[_MOMENTS["nu_max"]] = entry[_MOMENTS["nu"]]
        for field, moment in _MOMENTS.items():
            fields[field][row.leaf] = _moment(row, entry, moment)
    return FromTorch(_moments.build(params, count, fields), groups)


def to_torch(
    state: optax.OptState,
    params: optax.Params,
    target: Any,
    *,
    names: Sequence[str] | None = None,
    rename: _pairing.Rename | None = None,
    transposes: Transposes | None = None,
    key: Key | None = None,
) -> dict[str, Any]:
    r"""Converts a state of this package into a state dict of PyTorch's ``Adam`` or ``AdamW``.

    The inverse of :func:`from_torch`, with the same ``names``, ``rename`` and ``transposes``.

    Args:
      state: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState`, or any tree that
        contains one, such as the state of a chain. A state of the ``"optax"`` convention, which
        has another maximum than PyTorch's, must be converted with :func:`.convert_convention`
        first.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them.
      target: The PyTorch optimizer that continues the run, its state dict, or a file with it, as
        in :func:`from_torch`. Its groups and hyperparameters are kept, also those of parameters
        that have no leaf. It is not changed.
      names: PyTorch's names of the parameters in the order of its optimizer's groups, as
        :func:`names_of` returns them. Not needed if ``target`` has ``param_names``.
      rename: Maps a name of PyTorch to the path of a leaf, such as ``"dense/kernel"``, or to None
        to keep the parameter's state in ``target``: a function, or a mapping for the names that
        differ.
      transposes: The axes that turn PyTorch's array into the leaf, as for :func:`from_torch`,
        such as :func:`flax_transposes`; the inverse permutation is applied. None: the axes are
        the same.
      key: The key of the optimizer's state dict in ``target``, such as ``"optimizer"``, or a
        sequence of keys.

    Returns:
      A new dict for ``load_state_dict``. Before the first step it has no state for any
      parameter, as in PyTorch.

    Raises:
      ImportError: If PyTorch is not installed.
      TypeError: If ``target`` is not an optimizer, a state dict or a path.
      ValueError: As :func:`from_torch`; if ``state`` contains no state of this package (for
        states of Optax see :func:`from_optax`); or if ``amsgrad`` is off in a group of ``target``.

    Examples:
      With PyTorch installed, and a state of the optimizer in JAX::

          target = torch.optim.Adam(model.named_parameters(), amsgrad=True)
          target.load_state_dict(
              to_torch(opt_state, params, target, rename=..., transposes=flax_transposes)
          )
    """
    torch = import_torch()
    state_dict = state_dict_of(target, key)
    table = _correspondence(state_dict, params, names, rename, transposes)
    for number, group in enumerate(state_dict["param_groups"]):
        _supported(number, group)
        if not group["amsgrad"]:
            raise ValueError(
                f"group {number} of the target has amsgrad off, and PyTorch would ignore the "
                "maximum: build its optimizer with amsgrad=True"
            )
    moments = _moments.join_for(state, params)
    count = int(moments.count)

    tensors = _tensors(target)
    converted = {row.id for row in table}
    new: dict[Hashable, dict[str, Any]] = {
        id: copy.deepcopy(entry) for id, entry in state_dict["state"].items() if id not in converted
    }
    for row in table if count else ():
        old, parameter = state_dict["state"].get(row.id, {}), tensors.get(row.id)
        step = getattr(old.get("step"), "dtype", torch.float32)
        new[row.id] = {"step": torch.tensor(count, dtype=step)}
        for field, moment in _MOMENTS.items():
            array = row.to_tensor(np.asarray(getattr(moments, field)[row.leaf]))
            if parameter is not None and array.shape != tuple(parameter.shape):
                raise ValueError(
                    f"{field} of {row.leaf!r} becomes {array.shape}, but {row.name!r} has shape "
                    f"{tuple(parameter.shape)}: transposes says where its axes are; {_ORDER}"
                )
            tensor = torch.tensor(np.ascontiguousarray(array).reshape(array.shape))
            # load_state_dict keeps strides, and fused kernels need those of the parameter.
            like = parameter if parameter is not None else old.get(moment, tensor)
            like = torch.empty_like(like, dtype=tensor.dtype, device="cpu", requires_grad=False)
            # The dtype of what it replaces; load_state_dict converts to that of the parameter.
            new[row.id][moment] = like.copy_(tensor).to(getattr(old.get(moment), "dtype", None))
    return {"state": new, "param_groups": copy.deepcopy(state_dict["param_groups"])}


def names_of(optimizer: Any, model: Any) -> list[str]:
    """Returns PyTorch's names of the parameters of an optimizer, in the order of its groups.

    If the optimizer has several groups, this order can differ from that of
    ``model.named_parameters()``. Parameters are identified as objects.

    Args:
      optimizer: A ``torch.optim.Optimizer`` of the model's parameters.
      model: The ``torch.nn.Module`` with these parameters, or pairs of names and parameters, such
        as ``model.named_parameters()``.

    Returns:
      The names as a list of strings, for ``names`` of :func:`from_torch` and :func:`to_torch`.

    Raises:
      TypeError: If ``optimizer`` is not an optimizer.
      ValueError: If one of its parameters is not in ``model``.

    Examples:
      With PyTorch installed::

          decay = [p for p in model.parameters() if p.ndim > 1]
          rest = [p for p in model.parameters() if p.ndim <= 1]
          optimizer = torch.optim.Adam([{"params": decay}, {"params": rest}], amsgrad=True)
          optimizer.load_state_dict(checkpoint["optimizer"])
          interop.from_torch(optimizer, params, names=interop.names_of(optimizer, model))
    """
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    pairs = model.named_parameters() if hasattr(model, "named_parameters") else model
    names: dict[int, str] = {}
    for pair in pairs.items() if isinstance(pairs, Mapping) else pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "model must be a torch.nn.Module, or pairs of names and parameters as "
                f"model.named_parameters() has them, got {type(pair).__name__}"
            )
        names.setdefault(id(pair[1]), pair[0])
    found = []
    for number, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            if id(tensor) not in names:
                raise ValueError(
                    f"group {number} has a parameter of shape {tuple(tensor.shape)} that is not in "
                    "the model: a copy of a model has parameters of its own"
                )
            found.append(names[id(tensor)])
    return found


def optimizer_of(
    groups: Sequence[TorchGroup], params: optax.Params
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer that continues the run of PyTorch with these parameter groups.

    A group becomes :func:`.amsgradw` if its weight decay is decoupled, and :func:`.amsgrad` after
    ``optax.add_decayed_weights`` if it is an L2 penalty. Several groups are combined by
    ``optax.partition``.

    Args:
      groups: The parameter groups, such as :func:`from_torch` returns.
      params: The parameters, or a tree of their structure.

    Returns:
      The optimizer. If a group has weight decay, ``update`` needs the parameters.

    Raises:
      TypeError: If ``groups`` is not a sequence of :class:`TorchGroup`.
      ValueError: If a parameter is in no group, or in several; or if a hyperparameter is out of
        its range.

    Examples:
      To use a learning rate schedule, replace the constant learning rate:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> arguments = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8)
      >>> group = interop.TorchGroup(("kernel",), arguments, weight_decay=0.01, decoupled=True)
      >>> group.arguments["learning_rate"] = optax.cosine_decay_schedule(0.1, decay_steps=100)
      >>> optimizer = interop.optimizer_of([group], {"kernel": jnp.ones(3)})
    """
    labels: dict[str, str] = {}
    if isinstance(groups, FromTorch | TorchGroup) or not isinstance(groups, Sequence):
        raise TypeError(
            "groups must be a sequence of TorchGroup, such as from_torch(...).groups, got "
            f"{type(groups).__name__}"
        )
    for number, group in enumerate(groups):
        for path in group.paths:
            if path in labels:
                raise ValueError(f"{path!r} is in group {labels[path]} and in group {number}")
            labels[path] = str(number)
    for name in _names.by_name(params):
        if name not in labels:
            raise ValueError(f"the parameter {name!r} is in no group")
    used = {str(number): group for number, group in enumerate(groups) if group.paths}
    if len(used) == 1:
        return _optimizer(*used.values())
    return optax.partition(
        {number: _optimizer(group) for number, group in used.items()},
        _names.like(params, labels),
    )


def _optimizer(group: TorchGroup) -> optax.GradientTransformationExtraArgs:
    _checks.hyperparameter("weight_decay", group.weight_decay)
    if group.weight_decay == 0:
        return amsgrad(**group.arguments)
    if group.decoupled:
        return amsgradw(**group.arguments, weight_decay=group.weight_decay)
    return optax.chain(optax.add_decayed_weights(group.weight_decay), amsgrad(**group.arguments))


def flax_transposes(path: str, ndim: int) -> tuple[int, ...] | None:
    """The axes that turn PyTorch's linear and convolutional weights into kernels of Flax.

    PyTorch's axes (out, in, ...) become (..., in, out) for leaves called ``kernel`` with at least
    two axes; other leaves do not change. Transposed convolutions and attention differ in more
    than the order of axes.

    Args:
      path: Path of the leaf, such as ``"dense/kernel"``.
      ndim: Number of axes of the leaf.

    Returns:
      The permutation of axes for ``numpy.transpose``, or None if the axes are the same.

    Examples:
      >>> from amsgrad_jax import interop
      >>> interop.flax_transposes("dense/kernel", 2)
      (1, 0)
      >>> interop.flax_transposes("conv/kernel", 4)
      (2, 3, 1, 0)
    """
    if path.split("/")[-1] != "kernel" or ndim < 2:
        return None
    return (*range(2, ndim), 1, 0)


def _tensors(target: Any) -> dict[Hashable, Any]:
    """The parameters of an optimizer by their numbers; a state dict does not have them."""
    if not hasattr(target, "param_groups"):
        return {}
    return dict(enumerate(tensor for group in target.param_groups for tensor in group["params"]))


# What every wrong shape may come from.
_ORDER = (
    "or are the names not in the order of the optimizer's groups, as interop.names_of has them?"
)


class _Row(NamedTuple):
    """One parameter, in PyTorch and here."""

    id: Hashable  # in the state dict
    group: int
    name: str
    leaf: str
    shape: tuple[int, ...]  # of the leaf
    axes: tuple[int, ...]  # leaf = transpose(tensor, axes)

    def to_leaf(self, what: str, array: np.ndarray) -> np.ndarray:
        leaf = np.transpose(array, self.axes) if array.ndim == len(self.axes) else array
        if leaf.shape != self.shape:
            raise ValueError(
                f"{what} of {self.name!r} has shape {array.shape}, which does not become the shape "
                f"{self.shape} of the parameter {self.leaf!r}"
                + (f" with transposes {self.axes}" if self.axes != _kept(self.axes) else "")
                + f"; {_ORDER}"
            )
        return leaf

    def to_tensor(self, array: np.ndarray) -> np.ndarray:
        return np.transpose(array, np.argsort(self.axes))


def _kept(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(axes)))


def _correspondence(
    state_dict: Mapping[str, Any],
    params: Any,
    names: Sequence[str] | None,
    rename: _pairing.Rename | None,
    transposes: Transposes | None,
) -> list[_Row]:
    """Pairs the parameters of PyTorch's optimizer, in its order, with leaves, one to one.

    Those without a state and without a leaf, such as frozen ones, are left out, and those that
    ``rename`` leaves out.
    """
    groups, state = state_dict["param_groups"], state_dict["state"]
    for number, group in enumerate(groups):
        if "params" not in group:
            raise ValueError(f"group {number} has no 'params', only {some(group)}")
    ids = [(number, id) for number, group in enumerate(groups) for id in group["params"]]
    if unknown := state.keys() - {id for _, id in ids}:
        raise ValueError(f"the state has parameter {min(unknown, key=str)!r}, which is in no group")
    leaves = _moments.leaves_of(params)
    _pairing.check_kind("transposes", transposes)
    named = _named_ids(groups, state, ids, names)
    theirs = [name for _, _, name in named]
    found, tried = _pairing.pair(theirs, leaves, rename)
    rows = []
    for (number, id, name), leaf, form in zip(named, found, tried, strict=True):
        if leaf is None:
            if state.get(id) and form is not None:
                raise _pairing.no_leaf(name, form, leaves)
            continue
        if np.issubdtype(leaves[leaf].dtype, np.complexfloating):
            raise ValueError(
                f"the parameter {leaf!r} is complex: PyTorch keeps two second moments for it"
            )
        shape = np.shape(leaves[leaf])
        rows.append(_Row(id, number, name, leaf, shape, _axes(leaf, len(shape), transposes)))
    _pairing.require_all(leaves, found, theirs)
    if isinstance(transposes, Mapping):
        for path in transposes:
            if path not in leaves:
                raise ValueError(f"transposes has {path!r}, which is no parameter")
    return rows


def _named_ids(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Hashable, Any],
    ids: Sequence[tuple[int, Hashable]],
    names: Sequence[str] | None,
) -> list[tuple[int, Hashable, str]]:
    """Group, id and name of the parameters; of all, or of those that have a state."""
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got {names!r}")
    given = None if names is None else list(names)
    for name in given or ():
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {type(name).__name__}")
    own = [_own(group) for group in groups]
    if given is None and None in own:
        raise ValueError(
            f"group {own.index(None)} has no param_names: pass names=[...] with the names of all "
            "parameters in the order of the optimizer's groups, as interop.names_of returns them"
        )
    theirs = [name for of_group in own for name in of_group or ()]
    names = theirs if given is None else given
    with_state = [(number, id) for number, id in ids if state.get(id)]
    which = with_state if len(names) == len(with_state) else ids
    if len(names) != len(which):
        expected = f"{len(ids)}, one for each of PyTorch's parameters"
        if 0 < len(with_state) < len(ids):
            expected += f", or {len(with_state)}, one for each that has a state"
        raise ValueError(f"names must be {expected}, got {len(names)}")
    if given is not None and len(theirs) == len(ids):
        name_of = dict(zip((id for _, id in ids), theirs, strict=True))
        _pairing.check_order(given, [name_of[id] for _, id in which])
    return [(number, id, name) for (number, id), name in zip(which, names, strict=True)]


def _own(group: Mapping[str, Any]) -> Sequence[str] | None:
    """The names of a group's parameters, if it has any."""
    if "param_names" in group:
        return group["param_names"]
    return group["params"] if all(isinstance(id, str) for id in group["params"]) else None


def _axes(path: str, ndim: int, transposes: Transposes | None) -> tuple[int, ...]:
    axes = transposes(path, ndim) if callable(transposes) else (transposes or {}).get(path)
    if axes is None:
        return tuple(range(ndim))
    if sorted(axes) != list(range(ndim)):
        raise ValueError(
            f"transposes gives {tuple(axes)} for {path!r}: no permutation of its {ndim} axes"
        )
    return tuple(axes)


def _supported(number: int, group: Mapping[str, Any]) -> None:
    for option in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
        if option not in group:
            raise ValueError(f"group {number} has no {option!r}: it is not one of Adam or AdamW")
    if group.get("maximize"):
        raise ValueError(f"group {number} has maximize=True, which is not supported")


def _group(
    number: int, group: Mapping[str, Any], paths: Sequence[str], decoupled: bool | None
) -> TorchGroup:
    _supported(number, group)
    b1, b2 = group["betas"]
    named = {"learning_rate": group["lr"], "b1": b1, "b2": b2, "eps": group["eps"]}
    arguments = {name: _number(name, value) for name, value in named.items()}
    weight_decay = _number("weight_decay", group["weight_decay"])
    theirs = group.get("decoupled_weight_decay", decoupled)
    if decoupled is not None and decoupled != theirs:
        raise ValueError(
            f"decoupled must be {theirs}, as decoupled_weight_decay is in group {number}, or None, "
            f"got {decoupled}"
        )
    decoupled = theirs
    if decoupled is None and weight_decay:
        raise ValueError(
            f"group {number} has weight decay and does not say of which kind: pass "
            "decoupled=True for AdamW, decoupled=False for Adam"
        )
    return TorchGroup(tuple(paths), arguments, weight_decay, bool(decoupled))


def _count(state: Mapping[Hashable, Any], table: Sequence[_Row]) -> int:
    """The steps taken so far, which must be as many for all parameters."""
    if not any(state.get(row.id) for row in table):
        return 0
    first: tuple[str, float] | None = None
    for row in table:
        entry = state.get(row.id)
        if not entry:
            raise ValueError(
                f"{row.name!r} has no state, other parameters have: PyTorch never had a gradient "
                f"of it. Leave {row.leaf!r} out of params"
            )
        if "step" not in entry:
            raise ValueError(f"{row.name!r} has no 'step', only {some(entry)}")
        step = _number(f"the step of {row.name!r}", entry["step"])
        if not (0 <= step < 2**31 and step % 1 == 0):
            raise ValueError(
                f"the step of {row.name!r} must be an integer from 0 to 2**31 - 1, got {step:g}"
            )
        if first is not None and step != first[1]:
            raise ValueError(
                f"{first[0]!r} is at step {first[1]:.0f} and {row.name!r} at step {step:.0f}: "
                "one state here has one count"
            )
        first = first or (row.name, step)
    return int(first[1]) if first else 0


def _moment(row: _Row, entry: Mapping[str, Any], moment: str) -> np.ndarray:
    if moment not in entry:
        raise ValueError(f"{row.name!r} has no {moment!r}, only {some(entry)}")
    what = f"{moment} of {row.name!r}"
    array = _array(what, entry[moment])
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{what} must have a floating point dtype, got {array.dtype}")
    # fmin ignores NaN, and makes no array.
    if moment != _MOMENTS["mu"] and np.fmin.reduce(array, axis=None, initial=np.inf) < 0:
        raise ValueError(f"{what} must not be negative, got {np.nanmin(array)}")
    return row.to_leaf(moment, array)


def _array(what: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        kind = "a sparse" if value.is_sparse else "an empty (meta)" if value.is_meta else None
        if kind:
            raise TypeError(f"{what} must be a dense tensor with values, got {kind} one")
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    return np.asarray(value)  # shares its memory with the tensor


def _number(what: str, value: Any) -> float:
    array = _array(what, value)
    if array.size != 1:
        raise ValueError(f"{what} must be one number, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"{what} must be a number, got {_checks.shown(value)}")
    return float(array.item())
