"""The gradient engine: exact norms of every part, for every prompt, in one backward pass."""
