"""Pairs another library's names of parameters with leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]
"""From a name in the other library to that of a leaf; a mapping needs only names that differ."""

# What torch.nn.parallel and torch.compile put in front of the names of a module that they wrap.
_PREFIXES = ("module.", "_orig_mod.")


def pair(
    theirs: Sequence[str], leaves: Iterable[str], rename: Rename | None
) -> tuple[list[str | None], list[str]]:
    """For each of their names the leaf's, or None where there is no such leaf.

    And what became of each name, for an error. A name that no leaf has is tried with slashes for
    its dots, and without the prefixes of PyTorch's wrappers.
    """
    if isinstance(rename, Mapping):
        known = {form for name in theirs for form in _unwrapped(name)}
        for name in rename:
            if name not in known:
                raise ValueError(
                    f"rename has {name!r}, which no parameter is called: those are {some(theirs)}"
                )
    leaves = set(leaves)
    found: list[str | None] = []
    tried: list[str] = []
    first: dict[str, str] = {}
    for name in theirs:
        forms = list(_forms(name, rename))
        leaf = next((form for form in forms if form in leaves), None)
        if leaf is not None and leaf in first:
            raise ValueError(f"{first[leaf]!r} and {name!r} both become {leaf!r}")
        if leaf is not None:
            first[leaf] = name
        found.append(leaf)
        tried.append(forms[-1])
    return found, tried


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
        "pass rename to map it to one of them"
    )


def some(names: Iterable[object]) -> str:
    """The first names, for an error."""
    shown = list(map(repr, names))
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"


def _unwrapped(name: str) -> Iterator[str]:
    """The name, and what is left of it without each prefix of a wrapper."""
    yield name
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
        yield name


def _forms(name: str, rename: Rename | None) -> Iterator[str]:
    """What the leaf of a name may be called, the most literal first."""
    for form in _unwrapped(name):
        renamed = rename(form) if callable(rename) else (rename or {}).get(form, form)
        if not isinstance(renamed, str):
            raise TypeError(f"rename must give the name of a leaf, got {renamed!r} for {form!r}")
        yield renamed
        yield renamed.replace(".", "/")
