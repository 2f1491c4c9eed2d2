"""What all tests share: eight virtual CPU devices, so that sharding can be seen; programs that
compile fast; and examples of hypothesis that are the same in every run.

Compiling takes most of the time of the tests, and most of them look at what a program computes,
not at what XLA makes of it. They are compiled without optimizations; those with the mark
``optimized``, and all with the option ``--optimized``, as a user compiles them.
"""

import gc
import importlib.metadata
import os

import hypothesis
import packaging.version
import pytest

hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption("--optimized", action="store_true", help="compile as outside of tests")
    parser.addoption("--few", action="store_true", help="four cases of each test, not all")


def pytest_configure(config):
    # All of it before jax is imported, and also for the processes that tests start.
    # What somebody has set for programs of their own, as 64 bits, is not what tests expect.
    for name in os.environ.keys() - {"JAX_PLATFORMS"}:
        if name.startswith("JAX_"):
            del os.environ[name]
    # libtpu reads the flags, too, and does not know those for a CPU: tests/test_compiled.py needs
    # --optimized.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    if not config.getoption("optimized"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jaxlib = packaging.version.parse(importlib.metadata.version("jaxlib"))
        # With the emitters that came with jaxlib 0.7, XLA takes 3 times the time for a step. 0.11.1
        # does not know the flag, and stops at one that it does not know.
        if jaxlib < packaging.version.parse("0.11.1"):
            flags += [
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",  # programs here are small
            ]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("few"):
        return
    tests = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = set()
    for cases in tests.values():
        last = len(cases) - 1
        chosen |= {cases[round(last * part / 3)] for part in range(4)}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def pytest_collection_finish():
    """Spares the garbage collector what stays to the end: the modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _optimized(request):
    """Compiles as users do, in tests with that mark."""
    if request.config.getoption("optimized") or not request.node.get_closest_marker("optimized"):
        yield
        return
    import jax

    # The caches do not tell programs with optimizations from those without.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="session")
def _compiled():
    """A list with as many items as programs were compiled since there were too many."""
    import jax

    programs = []

    def count(event, _, **__):
        if event.endswith("/backend_compile_duration"):
            programs.append(None)

    jax.monitoring.register_event_duration_secs_listener(count)
    return programs


@pytest.fixture(autouse=True)
def _clear_caches(_compiled):
    """Clears JAX's caches when there are many programs: each takes up to a megabyte."""
    yield
    if len(_compiled) > 400:
        import jax

        jax.clear_caches()
        gc.collect()
        _compiled.clear()
