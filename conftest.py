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


def pytest_configure(config):
    # Before jax is imported, and also for the processes that tests start. libtpu reads the flags,
    # too, and does not know those for a CPU: tests/test_compiled.py needs --optimized.
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


def pytest_collection_finish():
    """The modules stay to the end: nothing is gained by looking through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _optimized(request):
    """Compiles as users do, in tests with that mark."""
    if request.config.getoption("optimized") or not request.node.get_closest_marker("optimized"):
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="session")
def _compiled():
    """The programs since JAX's caches were cleared, as many items of a list."""
    import jax

    programs = []

    def count(event, _, **__):
        if event.endswith("/backend_compile_duration"):
            programs.append(None)

    jax.monitoring.register_event_duration_secs_listener(count)
    return programs


@pytest.fixture(autouse=True)
def _forget_programs(_compiled):
    """Forgets the programs when there are many: each takes up to a megabyte."""
    yield
    if len(_compiled) > 400:
        import jax

        jax.clear_caches()
        gc.collect()
        _compiled.clear()
