"""gbcd: gradient-based circuit discovery at scale.

    gbcd.scan(out)          gradient norms, one row per prompt, wrong answer and part
    gbcd.prompts(out)       prompts as they were run
    gbcd.components(out)    parts of the model
    gbcd.summary(out)       statistics over prompts, ranked
    gbcd.load_circuit(out)  the circuit, with `to_json()` (EAP-IG, MIB), `to_networkx()` and `to_csv()`
    gbcd.specificity(out)   which components answer to one task, and which to all
    gbcd.factors(out, n)    circuits that mix, by non-negative factors of prompts and nodes
    gbcd.clusters(out, n)   groups of prompts that use the same components, with a circuit for each

The first four return a polars LazyFrame; `out` is where a run keeps its results. What `gbcd run` and `gbcd evaluate`
do:

    gbcd.run_study(gbcd.Study(tasks=("ioi",), out=out))
    gbcd.evaluate(out)

Without files and without Ray, for a notebook:

    loaded = gbcd.load_model("reference")
    prompts = gbcd.draw("ioi", loaded.tokenizer, n, seed)
    gbcd.gradient_norms(loaded.model, loaded.tokenizer, prompts)    the table of `scan`
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads that wait for each other give their core up, or a machine that others use too slows them down tenfold; first
# they look up for some microseconds, or two are no faster than one. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from gbcd.component import Component
from gbcd.prompting.prompt import Prompt
from gbcd.run.results import components, prompts, scan, summary
from gbcd.study import Compute, Study

if TYPE_CHECKING:
    from gbcd.analysis.circuit_files import load_circuit
    from gbcd.analysis.prompt_kinds import clusters, factors
    from gbcd.analysis.specificity import specificity
    from gbcd.evaluation.evaluate import evaluate
    from gbcd.in_memory import gradient_norms
    from gbcd.models.load import load as load_model
    from gbcd.pipeline import run_study
    from gbcd.tasks import draw

__all__ = [
    "Component",
    "Compute",
    "Prompt",
    "Study",
    "clusters",
    "components",
    "draw",
    "evaluate",
    "factors",
    "gradient_norms",
    "load_circuit",
    "load_model",
    "prompts",
    "run_study",
    "scan",
    "specificity",
    "summary",
]

#: What takes seconds to import (torch, scipy, scikit-learn), and whoever only queries results has no need of.
_LATE = {
    "clusters": ("gbcd.analysis.prompt_kinds", "clusters"),
    "draw": ("gbcd.tasks", "draw"),
    "evaluate": ("gbcd.evaluation.evaluate", "evaluate"),
    "factors": ("gbcd.analysis.prompt_kinds", "factors"),
    "gradient_norms": ("gbcd.in_memory", "gradient_norms"),
    "load_circuit": ("gbcd.analysis.circuit_files", "load_circuit"),
    "load_model": ("gbcd.models.load", "load"),
    "run_study": ("gbcd.pipeline", "run_study"),
    "specificity": ("gbcd.analysis.specificity", "specificity"),
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        module, there = _LATE[name]
        return getattr(import_module(module), there)
    raise AttributeError(f"module 'gbcd' has no attribute {name!r}")
