"""The examples run and are short, and a run that is killed goes on as if it had not been."""

import ast
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {"orbax_checkpoint": "ScaleByAmsgradState on .*id=1", "from_pytorch": "after 100 steps"}
LINES = {  # the others: 40
    "from_pytorch": 60,
    "interatomic_potential": 231,
    "interatomic_potential_data": 70,
    "interatomic_potential_torch": 130,
    "multi_host": 70,
    "multi_host_training": 100,
}
# Has tests of its own here, and multi_host in tests/test_multi_host.py.
POTENTIAL = ROOT / "examples/interatomic_potential.py"
OWN_TESTS = ("interatomic_potential", "multi_host")
STEPS, SAVED_EVERY = 40, 5


def run_python(*arguments, **environment):
    """Runs Python in a process of its own, on the CPU, with warnings as errors."""
    # Without the eight devices that all other tests have: as users run it.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    inherited = os.environ | {"XLA_FLAGS": " ".join(flags)}
    ase = "ignore:Setting the shape on a NumPy array:DeprecationWarning"  # with NumPy 2.5
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", ase, *map(str, arguments)],
        cwd=environment.pop("cwd", ROOT),
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,  # for one that hangs: none takes as long, however busy the machine is
    )


def imports(example):
    """Names of the packages that an example imports."""
    for node in ast.walk(ast.parse(example.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def skip_without(*packages):
    # To import them would cost seconds of every process that only looks for tests.
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            example, id=example.stem, marks=[pytest.mark.torch] * ("torch" in imports(example))
        )
        for example in EXAMPLES
        if not example.stem.startswith(OWN_TESTS)
    ],
)
def test_example_runs_and_leaves_nothing_behind(example, tmp_path):
    skip_without(*imports(example))
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    done = run_python(example, cwd=tmp_path / "here", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stderr
    assert 1 <= len(done.stdout.splitlines()) <= 10
    assert re.search(SAYS.get(example.stem, "loss"), done.stdout)
    left = {path.name for path in tmp_path.rglob("*")} - {"here", "temporary"}
    # PyTorch makes a folder for its compiler, needed or not.
    assert not [name for name in left if not name.startswith("torchinductor_")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_is_short(example):
    text = example.read_text()
    assert len(text.splitlines()) <= LINES.get(example.stem, 40)
    assert ast.get_docstring(ast.parse(text))


# In float64 what differs is rounding, which training carries on; float32 rounds 5e8 times as much.
@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "closest"), [("float64", 1e-8), ("float32", 1e-2)])
def test_the_potential_goes_on_as_it_does_in_torch(dtype, closest, tmp_path):
    skip_without("ase", "torch")
    figure = tmp_path / "figure.png"
    done = run_python(POTENTIAL, "--quick", "--dtype", dtype, "--figure", figure, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps, difference = re.search(r"after (\d+) steps .* differ by (\S+) of", done.stdout).groups()
    assert int(steps) > 200
    assert float(difference) < closest
    there, here = re.search(r"(\S+) in PyTorch, (\S+) in JAX$", done.stdout.strip()).groups()
    assert float(there) == float(here)
    assert [path.name for path in tmp_path.iterdir()] == [figure.name]


@pytest.mark.torch
def test_the_potential_trains_without_its_first_half(tmp_path):
    skip_without("ase")
    hidden = (  # whether it is installed or not
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--quick'];"
        f"sys.path.insert(0, {str(POTENTIAL.parent)!r});"
        f"runpy.run_path({str(POTENTIAL)!r}, run_name='__main__')"
    )
    done = run_python("-c", hidden, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "PyTorch is not installed" in done.stdout
    assert float(re.search(r"forces (\S+) meV", done.stdout)[1]) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_the_half_in_torch_runs_alone(tmp_path):
    skip_without("ase", "torch")
    done = run_python(POTENTIAL.with_stem("interatomic_potential_torch"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def train(folder, die_at=None):
    """Trains from the last complete checkpoint on, and writes down where it ends.

    Run in a process of its own, which kills itself after the step ``die_at``.
    """
    import jax
    import optax
    import orbax.checkpoint as ocp

    import amsgrad_jax
    from amsgrad_jax.demo import problems

    task = problems.digits(epochs=3, seed=0)
    batches = np.concatenate(task.batches)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        amsgrad_jax.amsgradw(optax.cosine_decay_schedule(1e-2, decay_steps=STEPS)),
    )

    @jax.jit
    def step(params, state, inputs, targets):
        gradients = jax.grad(task.loss)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    folder = pathlib.Path(folder)
    options = ocp.CheckpointManagerOptions(save_interval_steps=SAVED_EVERY, max_to_keep=2)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        run = (task.params, optimizer.init(task.params))
        first = manager.latest_step() or 0
        if first:
            run = manager.restore(first, args=ocp.args.StandardRestore(run))
        print(first)
        for number in range(first, STEPS):
            batch = batches[number]
            run = step(*run, task.inputs[batch], task.targets[batch])
            manager.save(number + 1, args=ocp.args.StandardSave(run))  # in the background
            if number + 1 == die_at:
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    leaves, structure = jax.tree.flatten(run)
    np.savez(folder / "end.npz", np.asarray(str(structure)), *leaves)


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    skip_without("orbax", "sklearn")

    def train_in_a_process(name, die_at=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = f"from tests.test_examples import train; train({str(folder)!r}, {die_at})"
        done = run_python("-c", command)
        assert done.returncode == (0 if die_at is None else -signal.SIGKILL), done.stderr
        return int(done.stdout)

    # Between two checkpoints, and while one is being written; a manager starts to write
    # one only when the one before is complete.
    assert train_in_a_process("killed", die_at=13) == 0
    assert train_in_a_process("killed", die_at=25) in (5, 10)
    assert train_in_a_process("killed") in (20, 25)
    assert train_in_a_process("whole") == 0
    killed, whole = (np.load(tmp_path / name / "end.npz") for name in ("killed", "whole"))
    with killed, whole:
        assert killed.files == whole.files
        assert "ScaleByAmsgradState" in str(killed["arr_0"])
        for name in whole.files:
            assert killed[name].dtype == whole[name].dtype
            assert killed[name].tobytes() == whole[name].tobytes()
