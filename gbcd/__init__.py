"""gbcd: gradient-based circuit discovery at scale."""
