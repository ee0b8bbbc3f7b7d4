"""The behaviours to study. One file is one task; `_registry.py` says how to add another, from here or from outside."""

from gbcd.tasks._families import Family, Filled, Slot, others
from gbcd.tasks._registry import Draw, Metric, Task, draw, get, metric_of, names, refuse_unknown, task

__all__ = [
    "Draw",
    "Family",
    "Filled",
    "Metric",
    "Slot",
    "Task",
    "draw",
    "get",
    "metric_of",
    "names",
    "others",
    "refuse_unknown",
    "task",
]
