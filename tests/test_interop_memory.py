"""What loading a state takes of memory, beside the checkpoint that it is read from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, whose peak nothing else has raised.
MEASURE = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import amsgrad_jax
from amsgrad_jax import interop


def kilobytes(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def problem(leaves, size):
    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    entry = lambda: {name: np.full(size, 0.5, np.float32) for name in moments}
    params = {f"p{i}": jnp.ones(size) for i in range(leaves)}
    group = dict(params=list(range(leaves)), param_names=list(params), lr=0.1, betas=(0.9, 0.999))
    return params, {
        "state": {i: {"step": 3.0} | entry() for i in range(leaves)},
        "param_groups": [group | dict(eps=1e-8, weight_decay=0.0, amsgrad=True)],
    }


def load(params, state_dict):
    optimizer = amsgrad_jax.amsgrad(0.1, storage=sys.argv[1])
    state, _ = interop.from_torch(state_dict, params)
    return interop.set_moments(jax.eval_shape(optimizer.init, params), state)


load(*problem(1, 2**18))  # imports, compiles
params, state_dict = problem(64, 2**18)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
state = jax.block_until_ready(load(params, state_dict))
print((kilobytes("VmHWM") - before) * 1024 / (64 * 2**18))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("storage", "most"), [("full", 13), ("packed", 17)])
def test_bytes_per_parameter(storage, most):
    """12 of float32 moments; 4 more where they are packed; 1 for what else a process does."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, storage],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= most
    print(done.stdout)
