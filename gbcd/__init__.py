"""gbcd: gradient-based circuit discovery at scale.

    gbcd.scan(out)          gradient norms, one row per prompt, wrong answer and part
    gbcd.prompts(out)       prompts as they were run
    gbcd.components(out)    parts of the model
    gbcd.summary(out)       statistics over prompts, ranked
    gbcd.load_circuit(out)  the circuit, with `to_json()` (EAP-IG, MIB), `to_networkx()` and `to_csv()`
    gbcd.specificity(out)   which components answer to one task, and which to all
    gbcd.factors(out, n)    circuits that mix, by non-negative factors of prompts and nodes

The first four return a polars LazyFrame; `out` is where a run keeps its results. `gbcd.gradient_norms(model, tokenizer,
prompts)` gives the table of `scan` at once, for a notebook.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gbcd.component import Component
from gbcd.job.results import components, prompts, scan, summary
from gbcd.prompting.prompt import Prompt

if TYPE_CHECKING:
    from gbcd.in_memory import gradient_norms
    from gbcd.reduction.factors import factors
    from gbcd.reduction.specificity import specificity
    from gbcd.reduction.stored_circuits import load_circuit

__all__ = [
    "Component",
    "Prompt",
    "components",
    "factors",
    "gradient_norms",
    "load_circuit",
    "prompts",
    "scan",
    "specificity",
    "summary",
]

#: What takes seconds to import (torch, scipy, scikit-learn), and whoever only queries results has no need of.
_LATE = {
    "factors": "gbcd.reduction.factors",
    "gradient_norms": "gbcd.in_memory",
    "load_circuit": "gbcd.reduction.stored_circuits",
    "specificity": "gbcd.reduction.specificity",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'gbcd' has no attribute {name!r}")
