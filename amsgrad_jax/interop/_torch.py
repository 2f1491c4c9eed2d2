"""PyTorch's ``Adam`` and ``AdamW``: their checkpoints in, and out again.

PyTorch numbers the parameters of an optimizer; here a parameter is the path of a leaf.
One table, made in `_correspondence`, leads from one to the other in both directions.
"""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import optax

from amsgrad_jax._alias import amsgrad, amsgradw
from amsgrad_jax._state import ScaleByAmsgradState
from amsgrad_jax._transform import scale_by_amsgrad
from amsgrad_jax.interop import _trees

Transposes: TypeAlias = Mapping[str, Sequence[int]] | Callable[[str, int], Sequence[int] | None]

_MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}


class TorchGroup(NamedTuple):
    """A parameter group of PyTorch's ``Adam`` or ``AdamW``.

    Args:
      paths: Paths of the group's parameters, as in ``"dense/kernel"``.
      arguments: ``learning_rate``, ``b1``, ``b2`` and ``eps``, for ``amsgrad`` and
        ``amsgradw``. The learning rate is the one that the group had when it was
        saved; a schedule of PyTorch's is not part of an optimizer's state.
      weight_decay: Factor of the weight decay.
      decoupled: Whether the decay is decoupled, as in ``AdamW``, or an L2 penalty.
    """

    paths: tuple[str, ...]
    arguments: dict[str, Any]
    weight_decay: float
    decoupled: bool


class FromTorch(NamedTuple):
    """What :func:`from_torch` makes of a checkpoint.

    Args:
      state: The moments, trees like the parameters.
      groups: The parameter groups, in PyTorch's order.
    """

    state: ScaleByAmsgradState
    groups: tuple[TorchGroup, ...]


def from_torch(
    source: Any,
    params: optax.Params,
    *,
    names: Sequence[str] | None = None,
    rename: _trees.Rename | None = None,
    transposes: Transposes | None = None,
    key: str | None = None,
    decoupled: bool | None = None,
    without_max: _trees.WithoutMax = "raise",
) -> FromTorch:
    r"""Reads the state of PyTorch's ``Adam`` or ``AdamW`` with ``amsgrad=True``.

    The moments ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` of each parameter
    become those of the leaf at the path that its name leads to, in the dtype that
    ``scale_by_amsgrad().init(params)`` gives them. In the ``"pytorch"`` convention, the
    default one, training goes on as it would have in PyTorch. The parameters
    themselves are not in an optimizer's checkpoint; convert them in the same way.

    Args:
      source: A ``torch.optim.Optimizer``, its ``state_dict()`` (whose tensors may be
        numpy arrays, too), or the path of a file that ``torch.save`` made of that.
        Files are read with ``weights_only=True``, which runs no code from them.
      params: The parameters, or anything of their structure, shapes and dtypes.
      names: PyTorch's names of the parameters in the order of its optimizer, such as
        ``[name for name, _ in model.named_parameters()]``. Needed unless the optimizer
        was built from ``named_parameters()`` and the checkpoint has ``param_names``.
      rename: PyTorch's name to the path of a leaf: a function, or a mapping for names
        that differ from ``name.replace(".", "/")``, which is what others become.
      transposes: Permutations of axes that make of PyTorch's array the leaf, as in
        ``numpy.transpose(tensor, axes)``: a function of the leaf's path and number of
        axes, such as :func:`flax_transposes`, or a mapping from paths. None leaves an
        array as it is.
      key: Where in the dict ``source``, or in the dict in its file, the optimizer's
        state dict is, such as ``"optimizer"``.
      decoupled: Whether weight decay is decoupled; needed only with weight decay and a
        state dict of a PyTorch too old (before 2.7) to say so.
      without_max: What to do about parameters without ``max_exp_avg_sq``, those of
        Adam with ``amsgrad=False``: ``"raise"``, or ``"use_nu"`` to start the maximum
        from ``exp_avg_sq``.

    Returns:
      The state and the parameter groups. :func:`optimizer_of` makes the optimizer of
      the groups, :func:`put` puts the state into the state of any chain.

    Raises:
      FileNotFoundError: If there is no such file.
      ImportError: If ``source`` is a file and PyTorch is not installed.
      TypeError: If ``source`` is none of the above.
      ValueError: If the file is damaged or holds code; if the state is not that of Adam,
        or not complete, or of parameters with different steps; if names and shapes do
        not fit the parameters, one to one; or if an option is not supported
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
      >>> opt_state = interop.put(optimizer.init(params), state)
      >>> print(opt_state[0].count, opt_state[0].mu["dense"]["kernel"].shape)
      7 (2, 3)
    """
    _trees.check_without_max(without_max)
    state_dict = _state_dict(source, key)
    table = _correspondence(state_dict, params, names, rename, transposes)
    groups = tuple(
        _group(number, group, [row.path for row in table if row.group == number], decoupled)
        for number, group in enumerate(state_dict["param_groups"])
    )
    count = _count(state_dict["state"], table)
    if count == 0:  # PyTorch makes the moments in the first step
        state: Any = scale_by_amsgrad().init(params)
        return FromTorch(state, groups)
    leaves = {field: {} for field in _MOMENTS}
    for row in table:
        entry = state_dict["state"][row.id]
        if without_max == "use_nu" and "exp_avg_sq" in entry:
            entry = {"max_exp_avg_sq": entry["exp_avg_sq"], **entry}
        for field, moment in _MOMENTS.items():
            leaves[field][row.path] = _moment(row, entry, moment)
    trees = {field: _trees.like(params, leaves[field]) for field in _MOMENTS}
    return FromTorch(_trees.ours(params, count, **trees), groups)


def to_torch(
    state: optax.OptState,
    params: optax.Params,
    template: Any,
    *,
    names: Sequence[str] | None = None,
    rename: _trees.Rename | None = None,
    transposes: Transposes | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    r"""Makes a state dict for PyTorch's ``Adam`` or ``AdamW`` with ``amsgrad=True``.

    The inverse of :func:`from_torch`: with the same ``names``, ``rename`` and
    ``transposes`` the two together give back what went in.

    Args:
      state: The state of :func:`.scale_by_amsgrad` or of a chain, partition or mask with
        it. The state does not know its convention; from ``"optax"``, the only one with
        another maximum than PyTorch's, :func:`convert` it first.
      params: The parameters, or anything of their structure, shapes and dtypes.
      template: The PyTorch optimizer that is to continue, its state dict or a file with
        it, as in :func:`from_torch`; its groups and hyperparameters are kept.
      names: PyTorch's names of the parameters in the order of its optimizer; see
        :func:`from_torch`, as for ``rename``, ``transposes`` and ``key``.
      rename: PyTorch's name to the path of a leaf.
      transposes: Permutations of axes that make of PyTorch's array the leaf; the
        inverse is applied.
      key: Where in ``template`` the optimizer's state dict is.

    Returns:
      A new dict for ``load_state_dict``. Before the first step it has no state for any
      parameter, as in PyTorch.

    Raises:
      ImportError: If PyTorch is not installed.
      TypeError: If ``template`` is none of the above.
      ValueError: As :func:`from_torch`; if ``state`` is not this package's (see
        :func:`from_optax`); or if ``amsgrad`` is off in a group of the template.

    Examples:
      With PyTorch installed, and a state of the optimizer in JAX::

          target = torch.optim.Adam(model.named_parameters(), amsgrad=True)
          target.load_state_dict(
              to_torch(opt_state, params, target, rename=..., transposes=flax_transposes)
          )
    """
    torch = _torch()
    state_dict = _state_dict(template, key)
    table = _correspondence(state_dict, params, names, rename, transposes)
    for number, group in enumerate(state_dict["param_groups"]):
        _supported(number, group)
        if not group["amsgrad"]:
            raise ValueError(
                f"group {number} of the template has amsgrad off, and PyTorch would ignore the "
                "maximum: build its optimizer with amsgrad=True"
            )
    count, mu, nu, nu_max = _trees.take(state, params, _trees.OURS)
    leaves = {
        field: _trees.by_path(tree) for field, tree in zip(_MOMENTS, (mu, nu, nu_max), strict=True)
    }

    def tensor(array: Any, old: Any, dtype: Any = None) -> Any:
        # The dtype of what it replaces; load_state_dict converts to that of the parameter.
        return torch.tensor(array, dtype=getattr(old, "dtype", dtype))

    shapes = _shapes(template)
    new: dict[Hashable, dict[str, Any]] = {}
    for number, row in enumerate(table if int(count) else ()):
        old = state_dict["state"].get(row.id, {})
        new[row.id] = {"step": tensor(int(count), old.get("step"), torch.float32)}
        for field, moment in _MOMENTS.items():
            array = row.to_tensor(np.asarray(leaves[field][row.path]))
            if shapes is not None and array.shape != shapes[number]:
                raise ValueError(
                    f"{field} of {row.path!r} becomes {array.shape}, but {row.name!r} has shape "
                    f"{shapes[number]}: transposes says where its axes are"
                )
            new[row.id][moment] = tensor(array, old.get(moment))
    return {"state": new, "param_groups": copy.deepcopy(state_dict["param_groups"])}


def optimizer_of(
    groups: Sequence[TorchGroup], params: optax.Params
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that does what PyTorch's did with these parameter groups.

    A group is ``amsgradw`` if its weight decay is decoupled, and ``amsgrad`` behind
    ``optax.add_decayed_weights`` if it is an L2 penalty. Several groups are joined by
    ``optax.partition``.

    Args:
      groups: Parameter groups, such as :func:`from_torch` returns.
      params: The parameters, or anything of their structure.

    Returns:
      The optimizer. If a group has weight decay, ``update`` needs the parameters.

    Raises:
      ValueError: If a parameter is in no group, or in several.

    Examples:
      For a learning rate that follows a schedule, replace the constant one:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> arguments = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8)
      >>> group = interop.TorchGroup(("kernel",), arguments, weight_decay=0.01, decoupled=True)
      >>> group.arguments["learning_rate"] = optax.cosine_decay_schedule(0.1, decay_steps=100)
      >>> optimizer = interop.optimizer_of([group], {"kernel": jnp.ones(3)})
    """
    labels: dict[str, str] = {}
    for number, group in enumerate(groups):
        for path in group.paths:
            if path in labels:
                raise ValueError(f"{path!r} is in group {labels[path]} and in group {number}")
            labels[path] = str(number)
    for path in _trees.by_path(params):
        if path not in labels:
            raise ValueError(f"the parameter {path!r} is in no group")
    if len(groups) == 1:
        return _optimizer(groups[0])
    return optax.partition(
        {str(number): _optimizer(group) for number, group in enumerate(groups)},
        _trees.like(params, labels),
    )


def _optimizer(group: TorchGroup) -> optax.GradientTransformationExtraArgs:
    if group.weight_decay == 0:
        return amsgrad(**group.arguments)
    if group.decoupled:
        return amsgradw(**group.arguments, weight_decay=group.weight_decay)
    return optax.chain(optax.add_decayed_weights(group.weight_decay), amsgrad(**group.arguments))


def flax_transposes(path: str, ndim: int) -> tuple[int, ...] | None:
    """Where Flax has the axes of PyTorch's linear and convolutional weights.

    A leaf called ``kernel`` has PyTorch's axes (out, in, ...) as (..., in, out); all
    others are as they are. Transposed convolutions and attention differ in more than
    the order of axes.

    Args:
      path: Path of the leaf.
      ndim: Number of its axes.

    Returns:
      The permutation of axes, or None.

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


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ImportError(
            "this needs PyTorch: pip install 'amsgrad_jax[parity]' installs it"
        ) from error


def _state_dict(source: Any, key: str | None) -> Mapping[str, Any]:
    if isinstance(source, str | os.PathLike):
        what, content = os.fspath(source), _load(source)
    elif hasattr(source, "state_dict"):
        what, content = f"the {type(source).__name__}", source.state_dict()
    else:
        what, content = "the state dict", source
    if key is not None and isinstance(content, Mapping):
        if key not in content:
            raise ValueError(f"{what} has no {key!r}, only {_some(content)}")
        what, content = f"{key!r} of {what}", content[key]
    if not isinstance(content, Mapping):
        raise TypeError(
            f"{what} must be a torch.optim.Optimizer, its state dict, or a file with it, "
            f"got {type(content).__name__}"
        )
    for part, kind in (("state", Mapping), ("param_groups", Sequence)):
        if not isinstance(content.get(part), kind):
            raise ValueError(
                f"{what} has no {part!r} of an optimizer, only {_some(content)}: "
                "is the optimizer's state dict in there, under a key to pass as key=...?"
            )
    return content


def _some(content: Iterable[Any]) -> str:
    keys = list(map(repr, content))
    return ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "") or "nothing"


def _load(path: str | os.PathLike[str]) -> Any:
    torch = _torch()
    with open(path, "rb") as file:  # here, so that what follows is about the content
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(
                f"{os.fspath(path)} was refused: it holds "
                f"{found.group(1) if found else 'something'}, which is no tensor or plain "
                "container and could run code; only files that torch.load reads with "
                "weights_only=True are read"
            ) from error
        # PyTorch does not say what it raises; text is a KeyError, half a file an OSError.
        except Exception as error:
            raise ValueError(
                f"{os.fspath(path)} is no file of torch.save, or not all of one: "
                f"{type(error).__name__} {error}"
            ) from error


def _shapes(template: Any) -> list[tuple[int, ...]] | None:
    # load_state_dict does not look at shapes, and a state dict does not have them.
    if not hasattr(template, "param_groups"):
        return None
    return [tuple(tensor.shape) for group in template.param_groups for tensor in group["params"]]


class _Row(NamedTuple):
    """One parameter, in PyTorch and here."""

    id: Hashable  # in the state dict, where only its place among the others means something
    group: int
    name: str
    path: str
    shape: tuple[int, ...]  # of the leaf
    axes: tuple[int, ...]  # leaf = transpose(tensor, axes)

    def to_leaf(self, what: str, array: np.ndarray) -> np.ndarray:
        leaf = np.transpose(array, self.axes) if array.ndim == len(self.axes) else array
        if leaf.shape != self.shape:
            raise ValueError(
                f"{what} of {self.name!r} has shape {array.shape}, which does not become the shape "
                f"{self.shape} of the parameter {self.path!r}"
                + (f" with transposes {self.axes}" if self.axes != _kept(self.axes) else "")
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
    rename: _trees.Rename | None,
    transposes: Transposes | None,
) -> list[_Row]:
    """Pairs the parameters of PyTorch's optimizer, in its order, with leaves, one to one."""
    groups = state_dict["param_groups"]
    ids = [(number, id) for number, group in enumerate(groups) for id in group["params"]]
    names = _names(groups, names, len(ids))
    unknown = state_dict["state"].keys() - {id for _, id in ids}
    if unknown:
        raise ValueError(f"the state has parameter {min(unknown, key=str)!r}, which is in no group")
    leaves = _trees.by_path(params)
    rows: dict[str, _Row] = {}
    for (number, id), name in zip(ids, names, strict=True):
        path = _path(name, rename)
        if path in rows:
            raise ValueError(f"{rows[path].name!r} and {name!r} both become {path!r}")
        if path not in leaves:
            raise ValueError(
                f"{name!r} becomes {path!r}, which is no parameter: those are {_some(leaves)}; "
                "rename says which one it is"
            )
        if np.iscomplexobj(leaves[path]):
            raise ValueError(
                f"the parameter {path!r} is complex: PyTorch keeps two second moments for it"
            )
        shape = np.shape(leaves[path])
        axes = _axes(path, len(shape), transposes)
        rows[path] = _Row(id, number, name, path, shape, axes)
    for path in leaves:
        if path not in rows:
            raise ValueError(f"the parameter {path!r} is none of PyTorch's: {_some(names)}")
    if isinstance(transposes, Mapping):
        for path in transposes:
            if path not in rows:
                raise ValueError(f"transposes has {path!r}, which is no parameter")
    return list(rows.values())


def _names(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None, number_of_ids: int
) -> Sequence[str]:
    if names is None:
        found: list[str] = []
        for number, group in enumerate(groups):
            if "param_names" not in group:
                raise ValueError(
                    f"group {number} has no param_names: pass names=[...] with the names of all "
                    f"{number_of_ids} parameters in the order of PyTorch's optimizer"
                )
            found += group["param_names"]
        names = found
    if isinstance(names, str) or len(names) != number_of_ids:
        got = repr(names) if isinstance(names, str) else str(len(names))
        raise ValueError(
            f"names must be {number_of_ids}, one for each of PyTorch's parameters, got {got}"
        )
    return names


def _path(name: str, rename: _trees.Rename | None) -> str:
    if callable(rename):
        return rename(name)
    return (rename or {}).get(name, name.replace(".", "/"))


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
    decoupled = group.get("decoupled_weight_decay", decoupled)
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
                f"{row.name!r} has no state, other parameters have: PyTorch leaves out a "
                "parameter that never had a gradient; leave it out of params and names, too"
            )
        if "step" not in entry:
            raise ValueError(f"{row.name!r} has no 'step', only {_some(entry)}")
        step = _number(f"the step of {row.name!r}", entry["step"])
        if not (step >= 0 and step % 1 == 0):
            raise ValueError(f"the step of {row.name!r} is {step}")
        if first is not None and step != first[1]:
            raise ValueError(
                f"{first[0]!r} is at step {first[1]:.0f} and {row.name!r} at step {step:.0f}: "
                "one state here has one count"
            )
        first = first or (row.name, step)
    return int(first[1]) if first else 0


def _moment(row: _Row, entry: Mapping[str, Any], moment: str) -> np.ndarray:
    if moment not in entry:
        if moment == _MOMENTS["nu_max"]:
            raise ValueError(
                f"{row.name!r} has no {moment!r}: amsgrad was off; without_max='use_nu' starts "
                "the maximum from 'exp_avg_sq'"
            )
        raise ValueError(f"{row.name!r} has no {moment!r}, only {_some(entry)}")
    return row.to_leaf(moment, _array(entry[moment]))


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    # A copy: PyTorch's next step would write into what it shares with the tensor.
    return np.array(value)


def _number(what: str, value: Any) -> float:
    array = _array(value)
    if array.size != 1:
        raise ValueError(f"{what} must be one number, got shape {array.shape}")
    return float(array.item())
