"""What all tests share: eight virtual CPU devices, so that sharding can be seen, and examples
of hypothesis that are the same in every run and may take their time to compile."""

import os

import hypothesis

# Before jax starts its CPU client.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("ci")
