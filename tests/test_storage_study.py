"""The study of storages: its statistics, what is committed of it, and what bfloat16 loses."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amsgrad_jax
from benchmarks import pages, storage, storage_problems, storage_report

PAGE = pages.DOCS / "memory.md"


@pytest.fixture(scope="module")
def results():
    return json.loads((pages.DOCS / "storage.json").read_text())


def test_paired_difference_is_that_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    full = rng.uniform(1, 2, 9)
    other = full + rng.normal(0.01, 0.02, 9)
    difference, error = storage_report.paired(full, other)
    assert difference == pytest.approx(100 * (other.mean() / full.mean() - 1))
    assert error == pytest.approx(100 * stats.sem(other - full) / full.mean())
    assert difference / error == pytest.approx(stats.ttest_rel(other, full).statistic)


@pytest.mark.parametrize(
    ("difference", "error", "passes"),
    [(0.4, 0.1, True), (-0.4, 0.1, True), (0.6, 0.1, False), (-0.6, 0.1, False), (1.9, 1, True)],
)
def test_a_cell_passes_within_half_a_percent_or_two_standard_errors(difference, error, passes):
    assert storage_report.passes(difference, error) is passes


def test_final_loss_is_the_mean_of_the_last_tenth():
    losses = np.arange(40.0).reshape(2, 20)
    cell = storage.cell({"full": losses}, b2=0.99)
    assert cell["b2"] == 0.99
    assert cell["final"]["full"] == [18.5, 38.5]
    assert cell["curves"]["full"]["mean"] == list(losses.mean(axis=0))


def test_training_is_a_plain_loop():
    # One number is fitted: steps of gradient descent in numpy, by seed and rate.
    inputs = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]

    class Line(storage_problems.Problem):
        def loss(self, params, inputs, targets):
            return jnp.mean((params * inputs[:, 0] - targets) ** 2)

    problem = Line("line", lambda key: jax.random.normal(key), None, inputs, 3 * inputs[:, 0], 4, 7)
    plan = storage.Plan(steps=200, seeds=3, rates=(0.05, 0.1))
    losses, moved = storage.train(problem, optax.sgd, plan)
    assert losses.shape == moved.shape == (2, 3, 100)
    for i, rate in enumerate(plan.rates):
        for seed in range(plan.seeds):
            x = float(jax.random.normal(jax.random.key(seed)))
            batches = np.random.default_rng(seed).integers(20, size=(100, 2, 4), dtype=np.int32)
            for k, batch in enumerate(batches.reshape(200, 4)):
                z = inputs[batch, 0].astype(np.float64)
                x -= rate * np.mean(2 * z * (x - 3) * z)
                if k % 2 == 1:
                    expected = np.mean((inputs[:7, 0].astype(np.float64) * (x - 3)) ** 2)
                    assert losses[i, seed, k // 2] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert np.all(moved[:, :, 0] == 1)


def test_committed_study_is_complete(results):
    cells = results["cells"]
    settings = {(cell["problem"], cell["learning_rate"], cell["b2"]) for cell in cells}
    assert len(settings) == len(cells) == 16
    assert len({problem for problem, _, _ in settings}) == 3
    assert {b2 for _, _, b2 in settings} == {0.99, 0.999, 0.9999}
    for cell in cells:
        assert cell["final"].keys() == storage.STORAGES.keys()
        for losses in cell["final"].values():
            assert len(losses) >= 8
            assert np.all(np.isfinite(losses))
            assert len(set(losses)) > len(losses) / 2  # of five digits; seeds differ
    assert results["long"]["steps"] >= 50_000
    assert max(row["steps"] for row in results["exactness"]) >= 100_000


def test_page_shows_what_the_study_found(results):
    page = PAGE.read_text()
    assert pages.refresh(page, storage_report.tables(results)) == page
    for name in re.findall(r"\((storage_\w+\.png)\)", page):
        assert (pages.DOCS / name).exists()


def test_a_page_without_a_mark_is_an_error(results):
    page = PAGE.read_text().replace("<!-- end of storage-long -->", "")
    with pytest.raises(ValueError, match="expected one block '<!-- storage-long -->'"):
        pages.refresh(page, storage_report.tables(results))


def test_text_and_digits_are_the_same_each_time():
    problem = storage_problems.transformer()
    assert problem.inputs.shape == problem.targets.shape
    np.testing.assert_array_equal(problem.inputs[:, 1:], problem.targets[:, :-1])
    assert problem.inputs.size > 200_000
    np.testing.assert_array_equal(problem.inputs, storage_problems.transformer().inputs)


def descend(optimizer, apply, dtype):
    """The share of 1000 parameters that has moved in 500 steps, and their mean then."""

    def step(carry, count):
        params, state = carry
        updates, state = optimizer.update(params, state, params)  # the gradient of |params|²/2
        return (apply(params, updates, count), state), None

    start = jnp.ones(1000, dtype)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(500))
    return float(jnp.mean(params != start)), float(params.astype(jnp.float32).mean())


def test_in_bfloat16_optax_does_not_take_a_step_and_we_go_on():
    # From 1 on, the number below in bfloat16 is 2**-8 away; steps are a quarter of that.
    plain = lambda params, updates, count: optax.apply_updates(params, updates)
    assert descend(optax.amsgrad(1e-3), plain, jnp.bfloat16) == (0.0, 1.0)
    _, exact = descend(optax.amsgrad(1e-3), plain, jnp.float32)
    ours = amsgrad_jax.amsgrad(1e-3, convention="optax", storage="packed")
    moved, mean = descend(ours, amsgrad_jax.stochastic_apply_updates, jnp.bfloat16)
    assert moved == 1.0
    assert 1 - mean == pytest.approx(1 - exact, rel=1 / 32)  # the bound of the root


def test_in_bfloat16_the_average_of_optax_stands_still_and_ours_does_not():
    # Constant gradients of 1: nu is 1 - 0.999**t.
    def state_after(transformation, steps):
        step = lambda state, _: (transformation.update(params, state)[1], None)
        state, _ = jax.lax.scan(step, transformation.init(params), length=steps)
        return state

    params = jnp.ones(1000, jnp.bfloat16)
    early, late = (state_after(optax.scale_by_amsgrad(), t).nu.astype(float) for t in (700, 5000))
    np.testing.assert_array_equal(early, late)
    assert jnp.all(late <= 0.5)
    state = state_after(amsgrad_jax.scale_by_amsgrad(storage="packed"), 5000)
    nu = amsgrad_jax.convert_storage(state, "full").nu
    assert nu.mean() == pytest.approx(1 - 0.999**5000, rel=2**-9)  # one unit of its root
