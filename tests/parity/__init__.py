"""Our numbers beside those of the real PyTorch, Keras and Optax, on the same gradients."""
