"""The run: plan, workers, driver, commits, storage, and what a reader sees of it."""
