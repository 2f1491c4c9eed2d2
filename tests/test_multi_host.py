"""Processes that train together end with the same bits, also after they have been killed."""

import os
import platform
import random
import re
import shutil
import signal
import sys

import jax
import pytest

import amsgrad_jax
from tests.test_examples import ROOT, run_python, skip_without

pytestmark = pytest.mark.skipif(
    not hasattr(jax, "set_mesh") or not hasattr(signal, "SIGKILL"),
    reason="Orbax needs jax.set_mesh to save arrays that several processes share",
)
STEPS, SAVED_EVERY = 24, 4

# Without instructions that multiply and add at once: where XLA uses them depends on the shape
# that each device has, and with it the last bit of an update.
NO_FMA = "--xla_cpu_max_isa=AVX"


@pytest.fixture(autouse=True, scope="module")
def _libraries():
    skip_without("orbax", "sklearn")


def training():
    sys.path.insert(0, str(ROOT / "examples"))
    import multi_host_training

    return multi_host_training


def train(folder, storage, processes=2, devices=4, steps=STEPS, fault=None, flags=""):
    """Runs the example to its end, or to its fault; returns the step that it went on after."""
    program = [ROOT / "examples" / "multi_host.py"]
    if fault:
        program = ["-m", "tests.faulty"]
    counts = ["--processes", processes, "--devices", devices, "--steps", steps]
    options = ["--storage", storage, "--save-every", SAVED_EVERY]
    environment = {"FAULT": fault or "", "XLA_FLAGS": flags}
    done = run_python(*program, folder, *counts, *options, **environment)
    assert done.returncode == (1 if fault else 0), done.stderr
    assert ("killed" in done.stdout) == bool(fault)
    (first,) = set(re.findall(r"goes on after step (\d+)", done.stdout))
    return int(first)


def saved(folder, storage, step=STEPS):
    """The parameters and the state in a checkpoint, on one device of this process."""
    import orbax.checkpoint as ocp

    optimizer = amsgrad_jax.amsgrad(1e-2, storage=storage)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(lambda: training().initial(optimizer)),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / storage / str(step) / "default", target)


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        assert jax.device_get(one).tobytes() == jax.device_get(other).tobytes()


@pytest.mark.faults
def test_two_processes_and_one_have_the_same_bits(tmp_path):
    import orbax.checkpoint as ocp

    two, one = tmp_path / "two", tmp_path / "one"
    for folder, processes, devices in (two, 2, 4), (one, 1, 8):
        assert train(folder, "packed", processes, devices, steps=6) == 0
    assert_same_bits(saved(two, "packed", 6), saved(one, "packed", 6))

    folder = two / "packed"  # what is not complete, or was and is not any more, is not read
    shutil.copytree(folder / "6", folder / "9.orbax-checkpoint-tmp")
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == 6
    data = max((f for f in folder.glob("6/**/*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    # In a process of its own, because Orbax leaves the other reads behind, unfinished.
    done = run_python(ROOT / "examples" / "multi_host.py", two, "--storage", "packed")
    assert done.returncode == 1
    assert "OUT_OF_RANGE" in done.stderr
    assert "goes on" not in done.stdout


@pytest.mark.faults
@pytest.mark.parametrize(
    ("storage", "devices", "flags"),
    [("full", 8, ""), ("packed", 4, NO_FMA)],
    ids=["full, ends on 8 devices", "packed, ends on 4 devices"],
)
def test_a_run_that_is_killed_six_times_ends_with_the_same_bits(storage, devices, flags, tmp_path):
    if flags == NO_FMA and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the flag that makes bits independent of the number of devices is for x86")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, storage, 1, 8, flags=flags) == 0

    chance = random.Random(storage)
    complete = 0
    for step in sorted(chance.sample(range(1, STEPS), 5)):
        fault = f"{chance.randrange(2)} step {step}"
        print(fault, "after", complete)
        assert train(killed, storage, fault=fault, flags=flags) == complete
        complete = max(1, step // SAVED_EVERY * SAVED_EVERY)  # Orbax saves the first step, too

    # The last bytes are written, but the checkpoint does not have its name yet.
    assert train(killed, storage, fault=f"0 commit {STEPS}", flags=flags) == complete
    assert (killed / storage / f"{STEPS}.orbax-checkpoint-tmp").exists()
    assert not (killed / storage / str(STEPS)).exists()
    assert train(killed, storage, 1, devices, flags=flags) == STEPS - SAVED_EVERY
    assert_same_bits(saved(killed, storage), saved(whole, storage))
