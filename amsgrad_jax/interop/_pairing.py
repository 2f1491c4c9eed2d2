"""Pairs another library's names of parameters with leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

Rename: TypeAlias = Mapping[str, str | None] | Callable[[str], str | None]
"""From a name in the other library to that of a leaf, or to None for a parameter to leave out.

A mapping needs only names that differ.
"""

# What torch.nn.parallel puts in front of the names of a module that it wraps, and what
# torch.compile, FSDP and activation checkpointing put before those of any part of it.
_PREFIX = "module."
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def pair(
    theirs: Sequence[str], leaves: Iterable[str], rename: Rename | None
) -> tuple[list[str | None], list[str | None]]:
    """For each of their names the leaf's, or None where there is no such leaf.

    And what became of each name, for an error; None if ``rename`` leaves it out. A name that no
    leaf has is tried with slashes for its dots, and without what PyTorch's wrappers add.
    """
    check_kind("rename", rename)
    if isinstance(rename, Mapping):
        known = {form for name in theirs for form in _unwrapped(name)}
        for name in rename:
            if name not in known:
                raise ValueError(
                    f"rename has {name!r}, which no parameter is called: those are {some(theirs)}"
                )
    leaves = set(leaves)
    found: list[str | None] = []
    tried: list[str | None] = []
    first: dict[str, str] = {}
    for name in theirs:
        forms = list(_forms(name, rename))
        leaf = None if None in forms else next((form for form in forms if form in leaves), None)
        if leaf is not None and leaf in first:
            raise ValueError(f"{first[leaf]!r} and {name!r} both become {leaf!r}")
        if leaf is not None:
            first[leaf] = name
        found.append(leaf)
        tried.append(None if None in forms else forms[-1])
    if tried and not any(tried):  # a function that returns nothing
        raise TypeError("rename must give the name of a leaf, got None for every parameter")
    return found, tried


def check_kind(name: str, value: object) -> None:
    """Raises unless an argument that says what becomes of each name is of a kind that can."""
    if not (value is None or isinstance(value, Mapping) or callable(value)):
        raise TypeError(f"{name} must be a mapping or a function, got {type(value).__name__}")


def check_order(names: Sequence[str], own: Sequence[str]) -> None:
    """Raises if a parameter gets a name that its library gives to another one."""
    own = [_bare(name) for name in own]
    places = {name: place for place, name in enumerate(own)}
    for place, name in enumerate(map(_bare, names)):
        if name != own[place] and name in places:
            raise ValueError(
                f"names has {names[place]!r} at place {place}, where the optimizer has "
                f"{own[place]!r}: leave names out, for it has its own, or use their order"
            )


def require_all(leaves: Iterable[str], found: Sequence[str | None], theirs: Sequence[str]) -> None:
    """Raises if a leaf belongs to none of their names."""
    paired = set(found)
    for leaf in leaves:
        if leaf not in paired:
            raise ValueError(
                f"the parameter {leaf!r} is none of the optimizer's, which are {some(theirs)}; "
                "leave out of params what is not trained, such as running means"
            )


def no_leaf(name: str, tried: str, leaves: Iterable[str]) -> ValueError:
    """The error for a parameter that has moments, and no leaf."""
    return ValueError(
        f"{name!r} becomes {tried!r}, which is no parameter: those are {some(leaves)}; "
        "pass rename to map it to one of them, or to None to leave it out"
    )


def some(names: Iterable[object]) -> str:
    """The first names, for an error."""
    shown = list(map(repr, names))
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"


def _bare(name: str) -> str:
    """The name without what wrappers of PyTorch add."""
    *_, last = _unwrapped(name)
    return last


def _unwrapped(name: str) -> Iterator[str]:
    """The name, and what is left of it without what each wrapper adds."""
    yield name
    inner = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    if inner != name:
        name = inner
        yield name
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
        yield name


def _forms(name: str, rename: Rename | None) -> Iterator[str | None]:
    """What the leaf of a name may be called, the most literal first; None to leave it out."""
    for form in _unwrapped(name):
        renamed = rename(form) if callable(rename) else (rename or {}).get(form, form)
        if not (renamed is None or isinstance(renamed, str)):
            raise TypeError(f"rename must give the name of a leaf, got {renamed!r} for {form!r}")
        yield renamed
        if renamed is not None:
            yield renamed.replace(".", "/")
