"""The caller's network, left as it was found: its weights, batches, gradients, precision and ranks."""
