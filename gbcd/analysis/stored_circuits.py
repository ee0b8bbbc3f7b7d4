"""Reading the circuits of a results folder back.

The reduction writes the circuit of the study's first task and wrong answer as `circuit.json` and those of the others as
`circuit_<task>_<wrong answer>.json` (`circuits.circuit_files`).
"""

from __future__ import annotations

from pathlib import Path

from gbcd.analysis.circuits import Circuit
from gbcd.analysis.shard_values import Key
from gbcd.errors import BadInput
from gbcd.run.results import summary
from gbcd.run.store import Store


def load_circuit(out: str | Path, task: str | None = None, wrong_answer: str | None = None) -> Circuit:
    """The circuit of one task and wrong answer, or a circuit file of EAP-IG, MIB or gbcd.

    It has `to_json()` (the format of EAP-IG and MIB), `to_networkx()` and `to_csv()`.

    Args:
        out: a results folder, or a `.json` file.
        task: needed where the study has several.
        wrong_answer: needed where the study has several.

    Raises:
        BadInput: there is no such circuit, or more than one that could be meant.
    """
    if str(out).endswith(".json"):
        try:
            return Circuit.from_json(Path(out).read_bytes(), str(out))
        except OSError as error:
            raise BadInput(f"circuit {str(out)!r} cannot be read: {error}") from error
    found = {
        key: circuit
        for key, circuit in read_circuits(str(out)).items()
        if task in (None, key.task) and wrong_answer in (None, key.wrong_answer)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    known = ", ".join(f"{key.task} with {key.wrong_answer}" for key in found or read_circuits(str(out)))
    problem = "several circuits could be meant" if found else "there is no such circuit"
    raise BadInput(f"{str(out)!r}: {problem}; name task and wrong_answer of one of: {known or 'none'}")


def read_circuits(out: str) -> dict[Key, Circuit]:
    """All circuits of a results folder, in the order of the study; none for a model that the format cannot describe.

    Raises:
        BadInput: `out` has not been reduced, or a file is no circuit.
    """
    store, found = Store(out), dict[Key, Circuit]()
    rows = summary(out).select("task", "wrong_answer").unique(maintain_order=True).collect()
    for group in (Key(*row) for row in rows.iter_rows()):
        path = f"circuit_{group.task}_{group.wrong_answer}.json"
        if not found and not store.exists(path):
            path = "circuit.json"
        if store.exists(path):
            found[group] = Circuit.from_json(store.read(path), path)
    return found
