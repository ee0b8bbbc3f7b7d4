"""Circuits that papers have found by hand, as `datasets/circuits.json` lists them with their sources."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from gbcd.errors import BadInput
from gbcd.prompting import datasets


class PublishedCircuit(BaseModel):
    """A published circuit.

    Attributes:
        model: the model it was found in; it is truth for no other.
        source: paper and the list followed.
        classes: role -> nodes, for example `name mover` -> `a9.h9`, ...
        parts: parts of those nodes, where the source names them; else empty.
        notes: where sources differ.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    source: str
    classes: dict[str, tuple[str, ...]]
    parts: tuple[str, ...] = ()
    notes: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, each once, in the order of the classes."""
        return tuple(dict.fromkeys(node for nodes in self.classes.values() for node in nodes))


def published_circuit(key: str) -> PublishedCircuit:
    """The circuit under `key` in `circuits.json`.

    Raises:
        BadInput: there is none.
    """
    circuits = datasets.circuits()
    if key not in circuits:
        raise BadInput(f"circuits.json has no circuit '{key}'. It has: {', '.join(circuits)}.")
    return PublishedCircuit.model_validate(circuits[key])
