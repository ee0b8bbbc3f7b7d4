"""Where a component's value lies in a run: the name of a value of the decoder, and a slice of it.

A head is what it hands to the attention output (`a3.z`). An MLP is what it adds to the residual stream (`m3.out`),
after the norm that some models put there. Of the parts, `q`, `k`, `v`, `in`, `gate` and
`up` are outputs of their maps (queries and keys before norm and rotation), and the others the same place as their node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from gbcd.analysis.nodes import WRITERS
from gbcd.component import Component

Level = Literal["node", "part"]

#: Values of the decoder by part; the others have their part's name.
_VALUES = {"o": "z", "down": "out"}


class Place(NamedTuple):
    """The place of one component.

    Attributes:
        name: of the node or part.
        part: name of the part that writes there: of a part, its own.
        layer: block.
        value: name of the value, as `gbcd.models.decoder.Patches` has it.
        slice: which slice of it.
    """

    name: str
    part: str
    layer: int
    value: str
    slice: int


def places_of(components: Sequence[Component], level: Level) -> list[Place]:
    """Places of all heads and MLPs (`node`), or of all their parts (`part`), in the order of `components`."""
    found: list[Place] = []
    for component in components:
        if component.is_circuit_part and (component.part in WRITERS or level == "part"):
            block, *rest = component.node.split(".")
            name = component.node if level == "node" else component.name
            value = f"{block}.{_VALUES.get(component.part, component.part)}"
            found.append(Place(name, component.name, component.layer, value, int(rest[0][1:]) if rest else 0))
    return found
