"""Finds the state dict of a PyTorch optimizer: in an object, a dict or a file, under some key."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from amsgrad_jax import _checks
from amsgrad_jax.interop._pairing import some

Key: TypeAlias = str | int | Sequence[str | int]
"""Keys and indices that lead to a part of a checkpoint, such as ``("optimizer_states", 0)``."""

_PARTS = {"state": Mapping, "param_groups": Sequence}

_WAY_OUT = "load the file by your own means and pass the dict"


def import_torch() -> Any:
    """PyTorch, or an error that says how to install it."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ImportError(f"this needs PyTorch: {_checks.extra('parity')}") from error


def state_dict_of(source: Any, key: Key | None) -> Mapping[str, Any]:
    """The state dict of an optimizer, or the one in a dict or a file."""
    if isinstance(source, str | os.PathLike):
        what, content = os.fspath(source), _load(source)
    elif hasattr(source, "state_dict"):
        what, content = f"the {type(source).__name__}", source.state_dict()
    else:
        what, content = "the state dict", source
    whole = content
    for part in () if key is None else (key,) if isinstance(key, str | int) else key:
        parts = dict(_parts(content))
        if part not in parts:
            raise ValueError(f"{what} has no {part!r}, only {_contents(content)}{_hint(whole)}")
        what, content = f"{part!r} of {what}", parts[part]
    if not isinstance(content, Mapping):
        raise TypeError(
            f"{what} must be a torch.optim.Optimizer, its state dict, or a file with it, "
            f"got {type(content).__name__}{_hint(whole)}"
        )
    for part, kind in _PARTS.items():
        if not isinstance(content.get(part), kind):
            raise ValueError(
                f"{what} has no {part!r} of an optimizer, only {_contents(content)}{_hint(whole)}"
            )
    return content


def _parts(content: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return content.items()
    return enumerate(content) if isinstance(content, list | tuple) else ()


def _contents(content: Any) -> str:
    if isinstance(content, Mapping):
        return some(content)
    size = f" of {len(content)}" if isinstance(content, list | tuple) else ""
    return f"a {type(content).__name__}{size}"


def _hint(content: Any) -> str:
    """Where in a checkpoint there are state dicts of optimizers."""
    if isinstance(content, Mapping) and any(str(key).startswith("state.") for key in content):
        return "; save it with flatten_optimizer_state_dict=False"
    keys = [repr(key[0] if len(key) == 1 else key) for key in _search(content, (), 3)]
    return f"; an optimizer's state dict is at key={' and key='.join(keys)}" if keys else ""


def _search(content: Any, key: tuple[Any, ...], depth: int) -> Iterator[tuple[Any, ...]]:
    is_mapping = isinstance(content, Mapping)
    if key and is_mapping and all(isinstance(content.get(p), kind) for p, kind in _PARTS.items()):
        yield key
    elif depth:
        for part, inside in _parts(content):
            yield from _search(inside, (*key, part), depth - 1)


def _load(path: str | os.PathLike[str]) -> Any:
    torch = import_torch()
    where = os.fspath(path)
    with open(path, "rb") as file:  # here, so that what follows is about the content
        # No cause is passed on: PyTorch's advice is to read the file with its safety off.
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{where} was refused: {_refused(torch, path, error)}") from None
        # PyTorch does not say what it raises; text is a KeyError, half a file an OSError.
        except Exception as error:
            text = f"{type(error).__name__} {error}"
            if "TorchScript" in text:
                raise ValueError(
                    f"{where} was refused: it is a TorchScript archive, which holds a compiled "
                    "module and code. Save the optimizer's state_dict() with torch.save, or "
                    f"{_WAY_OUT}"
                ) from None
            reason = "" if "weights_only" in text else f": {text}"
            raise ValueError(
                f"{where} was not written by torch.save, or is incomplete{reason}"
            ) from None


def _refused(torch: Any, path: str | os.PathLike[str], error: Exception) -> str:
    """What a file holds that PyTorch does not read from it, and the ways out."""
    kinds = re.findall(r"GLOBAL ([\w.]+)", str(error))
    # The error names the first class only.
    with contextlib.suppress(Exception):  # of files in PyTorch's older format
        every = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        kinds += [kind for kind in every if kind not in kinds]
    if any(kind.startswith("torch.optim.") for kind in kinds):
        return (
            f"it holds an optimizer, {some(kinds)}, and reading it could run code. Save "
            "optimizer.state_dict() in its place, or load the file by your own means and pass "
            "the optimizer"
        )
    if not kinds:  # text, or another protocol of pickle
        return f"it is not what torch.save writes by default: {_WAY_OUT}"
    numpy = any(kind.startswith("numpy.") for kind in kinds)
    return (
        f"it holds {', '.join(kinds)}, which is no tensor or plain container, and reading it could "
        "run code. If you trust it, either call this inside of "
        f"`with torch.serialization.safe_globals([{', '.join(kinds)}]):`"
        + (" (with the dtypes of NumPy's numbers, such as numpy.dtypes.Float64DType)" * numpy)
        + f", or {_WAY_OUT}"
    )
