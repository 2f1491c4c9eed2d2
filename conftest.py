"""What all tests share: two virtual CPU devices, so that sharding can be seen."""

import os

# Before jax starts its CPU client.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
