"""gbcd: gradient-based circuit discovery at scale.

    gbcd.scan(out)        gradient norms, one row per prompt, wrong answer and part
    gbcd.prompts(out)     prompts as they were run
    gbcd.components(out)  parts of the model
    gbcd.summary(out)     statistics over prompts, ranked

Each returns a polars LazyFrame; `out` is where a run keeps its results. `gbcd.gradient_norms(model, tokenizer,
prompts)` gives the table of `scan` at once, for a notebook.
"""

# Importing the modules `components` and `prompts` binds their names here. They come first, so that the names end up
# with the functions.
from gbcd.components import Component
from gbcd.prompts import Prompt

from gbcd.in_memory import gradient_norms  # isort: skip
from gbcd.results import components, prompts, scan, summary  # isort: skip

__all__ = ["Component", "Prompt", "components", "gradient_norms", "prompts", "scan", "summary"]
