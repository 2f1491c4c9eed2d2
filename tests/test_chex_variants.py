"""The same numbers however JAX runs an update: compiled or not, from device or host, in pmap."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import amsgrad_jax
from tests import reference
from tests.variants import CONVENTIONS

SHAPE = (2, 3)
GRADIENTS = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)


class Update(chex.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.product(convention=CONVENTIONS, storage=("full", "packed"))
    def test_three_steps(self, convention, storage):
        optimizer = amsgrad_jax.scale_by_amsgrad(convention=convention, storage=storage)
        update = self.variant(lambda gradient, state: optimizer.update(gradient, state))
        state = optimizer.init(jnp.zeros(SHAPE))
        wanted = reference.run(convention, GRADIENTS, b1=0.9, b2=0.999, eps=1e-8)
        for gradient, (want, _) in zip(GRADIENTS, wanted, strict=True):
            got, state = update(jnp.asarray(gradient), state)
            # A word rounds the root of the maximum by up to 1/32, and in each step the momentum
            # by up to 1/16 of what it then is.
            rtol, atol = (2e-5, 0) if storage == "full" else (1 / 31, np.max(np.abs(want)) / 16)
            np.testing.assert_allclose(jax.device_get(got), want, rtol=rtol, atol=atol)
