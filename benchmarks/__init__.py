"""Speed and accuracy beside optax and PyTorch: `python -m benchmarks`."""
