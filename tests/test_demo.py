"""The demo: its command line, what it writes, and that its claims are true."""

import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import amsgrad_jax
from amsgrad_jax import demo
from amsgrad_jax.__main__ import main
from amsgrad_jax.demo import experiments, problems, report, training
from tests.test_examples import skip_without

PROBLEMS = ("online: periodic", "online: stochastic", "online: theorem 1", "regression", "digits")


@pytest.fixture(autouse=True, scope="module")
def _libraries():
    skip_without("matplotlib", "sklearn", "tqdm")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick demo in a process of its own: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    command = [sys.executable, "-m", "amsgrad_jax", "demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "usage: python -m amsgrad_jax" in printed
    assert "demo" in printed


def test_demo_help_names_every_option_and_experiment(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for word in ("--quick", "--out", "--only", "--seed", *demo.EXPERIMENTS):
        assert word in printed


def test_quick_demo_prints_one_table_and_the_folder(quick):
    out, printed, progress = quick
    header, _, *rest = printed.partition("What this shows")[0].splitlines()
    assert "online, regression, digits" in header
    rows = [line for line in rest if line.startswith(PROBLEMS)]
    assert len(rows) == 3 * 2 + 2 + 4
    assert f"results.json are in {out}" in printed
    assert " ".join(printed.split()).rpartition("What this shows: ")[2].endswith(" points apart.")
    lines = progress.splitlines()  # no bars: this is no terminal
    assert len(lines) == len(rows)
    for problem in PROBLEMS:
        assert sum(line.startswith(f"{problem}, AMSGrad ") for line in lines) == 1


def test_quick_demo_writes_what_the_table_shows(quick):
    out, printed, _ = quick
    assert sorted(file.name for file in out.iterdir()) == [
        "digits.png",
        "online.png",
        "regression.png",
        "results.json",
    ]
    results = json.loads((out / "results.json").read_text())
    assert results["seed"] == 0
    assert results["quick"] is True
    assert results["versions"]["amsgrad_jax"] == amsgrad_jax.__version__
    assert results["versions"]["jax"] == jax.__version__
    assert results["versions"]["optax"] == optax.__version__
    assert {run["problem"] for run in results["runs"]} == set(PROBLEMS)
    for run in results["runs"]:
        assert run["settings"]["b1"] in (0.0, 0.9)
        assert run["seconds"] > 0
        expected = {
            "online": {"x", "average regret"},
            "regression": {"loss"},
            "digits": {"training loss", "test accuracy"},
        }[run["problem"].split(":")[0]]
        assert set(run["final"]) == expected
        assert all(map(math.isfinite, run["final"].values()))
        if run["problem"] == "digits":
            assert run["final"]["test accuracy"] > 0.8
            assert f"test accuracy {run['final']['test accuracy']:.1%}" in printed
        if run["problem"] in ("online: periodic", "online: theorem 1"):
            x = run["final"]["x"]
            assert x > 0.9 if run["optimizer"] == "Adam" else x < -0.9


@pytest.mark.parametrize("name", list(demo.EXPERIMENTS))
def test_figures_are_images(quick, name):
    from matplotlib import image

    out, _, _ = quick
    pixels = image.imread(out / f"{name}.png")
    height, width, _ = pixels.shape
    assert 500 < height < 2000
    assert 900 < width < 2000
    assert 0.5 < pixels.mean() < 0.99  # mostly white, but not empty


def test_only_the_named_experiment_is_run(tmp_path, capsys):
    assert main(["demo", "--quick", "--only", "regression", "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["regression.png", "results.json"]
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["optimizer"] for run in runs] == ["Adam", "AMSGrad"]
    assert "digits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "weather"], r"'weather' \(choose from .*online.*regression.*digits"),
        (["--seed", "-1"], "must be an integer from 0 to 4294967295, got '-1'"),
        (["--seed", "one"], "must be an integer from 0 to 4294967295, got 'one'"),
        (["--out", "occupied"], "'occupied' is not a usable folder: File exists"),
        (["--out", "occupied/below"], "'occupied/below' is not a usable folder: Not a dir"),
    ],
)
def test_bad_arguments_end_before_any_work(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: pytest.fail("it was run"))
    occupied = tmp_path / "occupied"
    occupied.write_text("mine")
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", *arguments])
    assert exit_info.value.code == 2
    assert [*tmp_path.iterdir()] == [occupied]
    assert occupied.read_text() == "mine"
    assert re.search(message, capfd.readouterr().err)


def test_missing_package_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--out", str(tmp_path / "new")])
    assert exit_info.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("tqdm not found: run pip install '.[demo]' in a clone of amsgrad-jax")
    assert not (tmp_path / "new").exists()


def test_slopes_are_those_of_the_paper():
    periodic, stochastic, theorem = problems.online(10_100, seed=1)
    t = np.arange(1, 10_101)
    np.testing.assert_array_equal(periodic.slopes, np.where(t % 101 == 1, 1010, -10))
    np.testing.assert_array_equal(theorem.slopes, np.where(t % 3 == 1, 3, -1))
    assert theorem.b2 == pytest.approx(1 / (1 + 3**2))
    assert set(stochastic.slopes) == {1010, -10}
    assert 60 < np.sum(stochastic.slopes == 1010) < 145  # 101 on average
    for problem in (periodic, stochastic, theorem):
        assert problem.slopes.dtype == np.float32


def test_seed_decides():
    same, again, other = (problems.online(1000, seed)[1].slopes for seed in (3, 3, 4))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    same, again, other = (problems.digits(1, seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, same.params, again.params)
    np.testing.assert_array_equal(same.batches, again.batches)
    assert not np.array_equal(same.batches, other.batches)
    assert not np.array_equal(same.params[0]["kernel"], other.params[0]["kernel"])


def test_training_is_plain_gradient_descent_with_sgd():
    task = problems.regression(3, seed=0)
    losses = [float(m["loss"]) for m in training.train(optax.sgd(1e-5), task, task.batches)]
    params = task.params
    expected = []
    for _ in range(4):
        loss, gradients = jax.value_and_grad(task.loss)(params, task.inputs, task.targets)
        expected.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 1e-5 * g, params, gradients)
    assert losses[3] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_digits_are_trained_on_half_of_the_images():
    task = problems.digits(50, seed=0)
    assert task.inputs.shape == (1797, 64)
    assert task.inputs.max() == 1.0
    seen = np.unique(task.batches)
    assert 880 < len(seen) <= 899
    for epoch in task.batches:
        assert len(np.unique(epoch)) == epoch.size


def test_initial_weights_are_those_of_torch():
    first, second = problems.regression(1, seed=0).params
    for layer, fan_in, fan_out in ((first, 1000, 100), (second, 100, 10)):
        bound = fan_in**-0.5
        assert layer["kernel"].shape == (fan_in, fan_out)
        assert layer["bias"].shape == (fan_out,)
        assert 0.95 * bound < np.abs(layer["kernel"]).max() <= bound * (1 + 1e-6)
        assert np.std(layer["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_table_shows_the_last_values():
    curves = {"step": np.array([1, 2]), "loss": np.array([5.0, 0.25])}
    lines = report.table([experiments.Run("p", "AMSGrad", {}, curves, 1.23)]).splitlines()
    assert lines[0].split() == ["problem", "optimizer", "at", "the", "end", "seconds"]
    assert lines[2].split() == ["p", "AMSGrad", "loss", "2.50e-01", "1.2"]


def test_conclusion_says_what_was_seen():
    def runs(problem, measure, adam, amsgrad):
        ends = {"Adam": adam, "AMSGrad": amsgrad}
        return [
            experiments.Run(problem, name, {}, {"step": [1], measure: [end]}, 1.0)
            for name, end in ends.items()
        ]

    online = [*runs("online: a", "x", 1.0, -1.0), *runs("online: b", "x", -1.0, -1.0)]
    assert report.conclusion(online).startswith("What this shows: in 1 of 2 online problems Adam")
    as_expected = report.conclusion(runs("regression", "loss", 1e-7, 4e-7))
    assert "on the regression Adam has the lower loss, as expected: " in as_expected
    otherwise = report.conclusion(runs("regression", "loss", 4e-7, 1e-7))
    assert otherwise == "What this shows: on the regression Adam does not have the lower loss."
    digits = report.conclusion(runs("digits", "test accuracy", 0.96, 0.95))
    assert digits == "What this shows: on the digits their test accuracies are 1.0 points apart."


def test_failure_while_writing_leaves_the_old_file(tmp_path):
    class Broken:
        def savefig(self, file, format):
            file.write(b"half of it")
            raise OSError("disk full")

    path = tmp_path / "online.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        report.save_figure(path, Broken())  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == b"old"
