"""Steps of `benchmarks/discovery.py`: measure one task of one model, compare tasks, average over models, print."""
