"""gbcd: gradient-based circuit discovery at scale.

    gbcd.scan(out)        gradient norms, one row per prompt, wrong answer and part
    gbcd.prompts(out)     prompts as they were run
    gbcd.components(out)  parts of the model
    gbcd.summary(out)     statistics over prompts, ranked

Each returns a polars LazyFrame; `out` is where a run keeps its results. `gbcd.gradient_norms(model, tokenizer,
prompts)` gives the table of `scan` at once, for a notebook.
"""

from typing import TYPE_CHECKING, Any

from gbcd.component import Component
from gbcd.job.results import components, prompts, scan, summary
from gbcd.prompting.prompt import Prompt

if TYPE_CHECKING:
    from gbcd.in_memory import gradient_norms

__all__ = ["Component", "Prompt", "components", "gradient_norms", "prompts", "scan", "summary"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and whoever only queries results has no need of it
    if name == "gradient_norms":
        from gbcd.in_memory import gradient_norms

        return gradient_norms
    raise AttributeError(f"module 'gbcd' has no attribute {name!r}")
