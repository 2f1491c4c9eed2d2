"""The machine that was measured on: its description, its memory, what a call needs of it."""

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages that are installed, the machine, the date."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions | {
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores ({platform.machine()}), {jax.devices()[0].device_kind}",
        "date": datetime.date.today().isoformat(),
    }


def memory() -> int:
    """Bytes of memory of the device that JAX uses."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def extra_memory(function: Callable[[], None]) -> int | None:
    """Bytes by which this process grows at most during a call; None where Linux does not tell."""
    if not _CLEAR.exists():
        return None
    _CLEAR.write_text("5")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def trim() -> None:
    """Gives memory that is no longer used back to the system, where glibc can.

    Compiling a step of 2,000 leaves leaves 2 GB in glibc's free lists; ten such fill a machine.
    """
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
