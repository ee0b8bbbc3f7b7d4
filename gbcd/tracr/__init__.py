"""Transformers compiled from RASP programs by tracr: their model, the compilation, and two that are shipped."""
