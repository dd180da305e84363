"""guard: know when a local language model is wrong, in the same forward pass, and act on it."""
