"""What XLA's compiler for TPUs makes of a step, where it is installed; no TPU is needed."""

import pytest

from benchmarks import compiled

pytest.importorskip("libtpu", reason="libtpu is not installed; make compiled has it")
every_tpu = pytest.mark.parametrize("name", compiled.TPUS)
SHAPE = (2048, 2048)


def made(optimizer, name):
    device = compiled.tpu(compiled.TPUS[name][0])[0]
    return compiled.made(compiled.OPTIMIZERS[optimizer], (SHAPE,), device)


@every_tpu
@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"), [("ours, full", 36.1), ("ours, packed", 20.1)]
)
def test_a_step_is_one_pass(name, optimizer, bytes_per_parameter):
    step = made(optimizer, name)
    assert step.passes == 1
    assert step.bytes is not None
    # Gradient, parameter and state are read, parameter and state are written.
    assert bytes_per_parameter - 0.1 <= step.bytes <= bytes_per_parameter
    assert step.temporary < 0.1


@every_tpu
def test_packed_is_estimated_to_take_less_time_than_optax(name):
    reference = made("optax.amsgrad", name).cycles
    assert made("ours, packed", name).cycles < 0.7 * reference
    assert made("ours, full", name).cycles < 1.02 * reference


def test_zero1_gathers_parameters_once_and_moves_no_state():
    moved = compiled.collectives(compiled.tpu("v5e:4x4"), "zero1")
    assert moved["all-gather"] == 1
    assert moved.get("all-reduce", 0) + 16 * moved.get("reduce-scatter", 0) == 1
    assert not {"all-to-all", "collective-permute"} & set(moved)
