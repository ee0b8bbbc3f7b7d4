"""`gbcd list`: what can be asked for by name."""

from __future__ import annotations

from enum import StrEnum

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status
from gbcd.printing import table


class Listed(StrEnum):
    """What can be listed."""

    TASKS = "tasks"
    WRONG_ANSWERS = "wrong-answers"


def list_(what: Listed, definitions: options.Definitions = None) -> None:
    """List the tasks, or the definitions of the wrong answer."""
    with exit_status():
        from gbcd import tasks, wrong_answers
        from gbcd.run.own_definitions import import_definitions, read_definitions

        import_definitions(read_definitions(definitions or ()))
        if what is Listed.TASKS:
            entries = [(name, tasks.get(name).description.splitlines()[0]) for name in tasks.names()]
        else:
            entries = [(name, wrong_answers.get(name).summary) for name in wrong_answers.names()]
        columns = (what.value, "what it is")
        table(console, columns, entries, words=columns)
