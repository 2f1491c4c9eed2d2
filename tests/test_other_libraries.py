"""Libraries that take an optimizer of Optax take ours; each runs where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amsgrad_jax import amsgrad

pytestmark = pytest.mark.filterwarnings("default")  # these libraries are not ours
KEY = jax.random.key(0)
STORAGES = pytest.mark.parametrize("storage", ["full", "packed"])


@STORAGES
def test_numpyro(storage):
    numpyro = pytest.importorskip("numpyro")
    infer = pytest.importorskip("numpyro.infer")
    autoguide = pytest.importorskip("numpyro.infer.autoguide")

    def model(data):
        mean = numpyro.sample("mean", numpyro.distributions.Normal(0, 10))
        with numpyro.plate("data", len(data)):
            numpyro.sample("x", numpyro.distributions.Normal(mean, 1), obs=data)

    guide, optimizer = autoguide.AutoNormal(model), amsgrad(5e-2, storage=storage)
    data = jnp.asarray(np.random.default_rng(0).normal(3, 1, 100))
    svi = infer.SVI(model, guide, optimizer, infer.Trace_ELBO())
    result = svi.run(KEY, 500, data, progress_bar=False)
    assert abs(result.params["mean_auto_loc"] - data.mean()) < 0.1


@STORAGES
def test_netket(storage):
    nk = pytest.importorskip("netket")
    hilbert = nk.hilbert.Spin(0.5, 4)
    hamiltonian = nk.operator.IsingJax(hilbert, nk.graph.Chain(4), h=1.0)
    model = nk.models.RBM(alpha=1, param_dtype=float)
    state = nk.vqs.FullSumState(hilbert, model)
    before = state.expect(hamiltonian).mean
    optimizer = amsgrad(2e-2, storage=storage)
    driver = nk.driver.VMC(hamiltonian, optimizer, variational_state=state)
    driver.run(50, out=None, show_progress=False)
    assert state.expect(hamiltonian).mean < before


@STORAGES
def test_optimistix(storage):
    optimistix = pytest.importorskip("optimistix")
    solver = optimistix.OptaxMinimiser(amsgrad(0.1, storage=storage), rtol=1e-6, atol=1e-6)
    loss = lambda y, target: jnp.sum((y - target) ** 2)
    found = optimistix.minimise(loss, solver, jnp.zeros(3), jnp.arange(3.0), max_steps=4000)
    np.testing.assert_allclose(found.value, jnp.arange(3.0), atol=1e-3)


@STORAGES
def test_jaxopt(storage):
    jaxopt = pytest.importorskip("jaxopt")

    def solve(target):
        loss = lambda x, target: jnp.sum((x - target) ** 2) + 0.5 * jnp.sum(x**2)
        optimizer = amsgrad(3e-2, storage=storage)
        solver = jaxopt.OptaxSolver(loss, optimizer, maxiter=4000, implicit_diff=True)
        return solver.run(jnp.zeros(3), target).params

    jacobian = jax.jacobian(solve)(jnp.arange(3.0))
    np.testing.assert_allclose(jacobian, 2 / 3 * np.eye(3), atol=1e-3)


@STORAGES
def test_gpjax(storage):
    gpx = pytest.importorskip("gpjax")
    x = jnp.linspace(0, 3, 30)[:, None]
    mean, kernel = gpx.mean_functions.Zero(), gpx.kernels.RBF()
    prior = gpx.gps.Prior(mean_function=mean, kernel=kernel)
    _, losses = gpx.fit(
        model=prior * gpx.likelihoods.Gaussian(),
        objective=lambda model, data: -gpx.objectives.conjugate_mll(model, data),
        train_data=gpx.Dataset(X=x, y=jnp.sin(x)),
        optim=amsgrad(1e-2, storage=storage),
        num_iters=100,
        key=KEY,
        verbose=False,
    )
    assert losses[-1] < losses[0]


@STORAGES
def test_flowjax(storage):
    flows = pytest.importorskip("flowjax.flows")
    distributions = pytest.importorskip("flowjax.distributions")
    train = pytest.importorskip("flowjax.train")
    flow = flows.masked_autoregressive_flow(
        KEY, base_dist=distributions.Normal(jnp.zeros(2)), flow_layers=2, nn_width=8
    )
    _, losses = train.fit_to_data(
        KEY,
        flow,
        jax.random.normal(KEY, (500, 2)) + 2,
        optimizer=amsgrad(1e-2, storage=storage),
        max_epochs=5,
        show_progress=False,
    )
    assert losses["train"][-1] < losses["train"][0]


@STORAGES
def test_blackjax(storage):
    blackjax = pytest.importorskip("blackjax")
    log_density = lambda x: -0.5 * jnp.sum((x["a"] - 3) ** 2)
    vi = blackjax.meanfield_vi(log_density, amsgrad(5e-2, storage=storage), 50)
    state, step = vi.init({"a": jnp.zeros(2)}), jax.jit(vi.step)
    for key in jax.random.split(KEY, 300):
        state, _ = step(key, state)
    np.testing.assert_allclose(state.mu["a"], 3, atol=0.2)


@STORAGES
def test_haiku(storage):
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 1])(x)))
    x = jnp.linspace(-1, 1, 64)[:, None]
    loss = lambda params: jnp.mean((network.apply(params, x) - jnp.sin(3 * x)) ** 2)
    optimizer, params = amsgrad(1e-2, storage=storage), network.init(KEY, x)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = loss(params), optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state)
    assert loss(params) < 0.2 * before


@STORAGES
def test_penzai(storage):
    pz = pytest.importorskip("penzai.pz")
    simple_mlp = pytest.importorskip("penzai.models.simple_mlp")
    training = pytest.importorskip("penzai.toolshed.basic_training")
    model = simple_mlp.MLP.from_config(name="mlp", init_base_rng=KEY, feature_sizes=[1, 16, 1])
    x = pz.nx.wrap(jnp.linspace(-1, 1, 64)[:, None], "batch", "features")

    def loss(model, state, rng):
        error = model(x) - pz.nx.nmap(jnp.sin)(3 * x)
        value = (error**2).untag("batch", "features").unwrap().mean()
        return value, state, {"loss": value}

    optimizer = amsgrad(1e-2, storage=storage)
    trainer = training.StatefulTrainer.build(
        root_rng=KEY, model=model, optimizer_def=optimizer, loss_fn=loss
    )
    losses = [trainer.step()["loss"] for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]
