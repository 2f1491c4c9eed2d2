"""Everything public pickles and deep-copies to something that behaves the same, and shows itself
on one line."""

import copy
import inspect
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import cloudpickle
import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import diagnostics, interop, projections, remedies, schedules, sharding

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3.0)}
GRADIENTS = jax.tree.map(lambda leaf: 0.5 - leaf, PARAMS)


def after_two_steps(optimizer, params=PARAMS):
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(GRADIENTS, state, params)
    return updates, state


COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "copy": copy.deepcopy}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@every_copy
@pytest.mark.parametrize("name", ["PAPER", "PYTORCH", "KERAS", "OPTAX"])
def test_conventions(copied, name):
    convention = getattr(amsgrad_jax, name)
    again = copied(convention)
    assert again == convention
    assert hash(again) == hash(convention)
    want = after_two_steps(amsgrad_jax.amsgrad(0.1, convention=convention))
    chex.assert_trees_all_equal(after_two_steps(amsgrad_jax.amsgrad(0.1, convention=again)), want)
    # Found where a convention decides, and not where it is the same object.
    state = want[1]
    how = dict(from_convention=again, to_convention=copied(amsgrad_jax.OPTAX))
    chex.assert_trees_all_equal(
        amsgrad_jax.convert_convention(state, **how),
        amsgrad_jax.convert_convention(state, from_convention=name.lower(), to_convention="optax"),
    )


STATES = {
    "full": amsgrad_jax.amsgrad(0.1),
    "packed": amsgrad_jax.amsgrad(0.1, storage="packed"),
    "watch": diagnostics.watch(amsgrad_jax.amsgrad(0.1), 2),
    "reset_max_when": remedies.reset_max_when(amsgrad_jax.amsgrad(0.1), lambda count: count == 1),
    "stochastic_rounding": optax.chain(amsgrad_jax.amsgrad(0.1), amsgrad_jax.stochastic_rounding()),
}


@every_copy
@pytest.mark.parametrize("name", STATES)
def test_states(copied, name):
    optimizer = STATES[name]
    _, state = after_two_steps(optimizer)
    again = copied(state)
    chex.assert_trees_all_equal(again, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    got = optimizer.update(GRADIENTS, again, PARAMS)
    chex.assert_trees_all_equal(got, optimizer.update(GRADIENTS, state, PARAMS))
    chex.assert_trees_all_equal(diagnostics.max_report(again), diagnostics.max_report(state))


SCHEDULES = [
    schedules.inverse_sqrt(0.5),
    schedules.decaying_b1(0.9, 0.5),
    schedules.inverse_b1(0.9),
    schedules.running_mean_b2(),
]


@every_copy
@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_schedules(copied, number):
    schedule = SCHEDULES[number]
    for count in (0, 3):
        assert copied(schedule)(count) == schedule(count)
    assert "\n" not in repr(schedule)
    assert len(repr(schedule)) < 100


MESH = jax.sharding.AbstractMesh((2,), ("data",))
RECORDS = {
    "MemoryReport": sharding.memory_report(PARAMS, PARAMS, 2),
    "TorchGroup": interop.TorchGroup(("a",), {"learning_rate": 0.1}, 0.0, False),
    "Convention": amsgrad_jax.Convention(True, "never"),
}


@every_copy
@pytest.mark.parametrize("name", RECORDS)
def test_records(copied, name):
    assert copied(RECORDS[name]) == RECORDS[name]
    assert "\n" not in repr(RECORDS[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: amsgrad_jax.amsgrad(optax.linear_schedule(0.1, 0.0, 9), convention="optax"),
        lambda: amsgrad_jax.amsgradw(0.1, mask={"kernel": True, "bias": False}),
        lambda: amsgrad_jax.amsgrad(0.1, storage="packed"),
        lambda: STATES["watch"],
        lambda: projections.projected(amsgrad_jax.amsgrad(0.1), projections.box(0.0, 1.0)),
    ],
    ids=["schedule", "mask", "packed", "watch", "projected"],
)
def test_transformations(make):
    """They are functions within functions, as all of Optax: cloudpickle takes them along."""
    optimizer = make()
    want = after_two_steps(optimizer)
    for again in (copy.deepcopy(optimizer), pickle.loads(cloudpickle.dumps(optimizer))):
        chex.assert_trees_all_equal(after_two_steps(again), want)


@pytest.mark.parametrize("name", ["keras", "optax", "torch"])
@pytest.mark.parametrize("direction", ["from", "to"])
def test_options_of_a_conversion_have_no_order(direction, name):
    """More of them come with every version of another library."""
    for argument in inspect.signature(getattr(interop, f"{direction}_{name}")).parameters.values():
        is_option = argument.default is not argument.empty
        assert argument.kind == (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)[is_option]


def test_a_vendored_copy_imports(tmp_path):
    """A copy in another project's tree has no metadata."""
    package = Path(amsgrad_jax.__file__).parent
    shutil.copytree(package, tmp_path / "amsgrad_jax", ignore=shutil.ignore_patterns("__pycache__"))
    # Without the installed metadata, but with the installed dependencies.
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import amsgrad_jax, sys\n"
        "assert 'amsgrad_jax.projections' not in sys.modules\n"
        "amsgrad_jax.projections.box(0.0, 1.0)\n"
        "print(amsgrad_jax.__version__, amsgrad_jax.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unknown", str(tmp_path / "amsgrad_jax/__init__.py")]


def test_help_lists_what_is_public():
    done = subprocess.run(
        [sys.executable, "-c", "import amsgrad_jax; help(amsgrad_jax)"],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for name in ("amsgrad(", "scale_by_amsgrad(", "convert_storage(", "class Convention"):
        assert name in done.stdout


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: amsgrad_jax.scale_by_amsgrad(),
        lambda: amsgrad_jax.scale_by_amsgrad(storage="packed"),
        lambda: diagnostics.watch(amsgrad_jax.scale_by_amsgrad(), 2),
        lambda: remedies.reset_max_when(amsgrad_jax.scale_by_amsgrad(), lambda count: count == 1),
        lambda: optax.chain(amsgrad_jax.scale_by_amsgrad(), amsgrad_jax.stochastic_rounding()),
    ],
    ids=["full", "packed", "watch", "reset_max_when", "stochastic_rounding"],
)
def test_a_step_is_exported_and_read_back(wrap):
    optimizer = wrap()
    arguments = GRADIENTS, optimizer.init(PARAMS), PARAMS
    exported = jax.export.export(jax.jit(optimizer.update))(*arguments)
    got = jax.export.deserialize(exported.serialize()).call(*arguments)
    chex.assert_trees_all_close(got, jax.jit(optimizer.update)(*arguments))
    assert jax.tree.structure(got[1]) == jax.tree.structure(arguments[1])
