"""From a study to a plan: draw and check all prompts, hash everything that goes in, store it, or resume what is there.

Everything that can be refused is refused here, before any work: unknown names, prompts that the tokenizer cannot take,
a model that cannot be had, a folder that cannot be written or that holds another study. A study of several models has a
plan for each; all of them are drawn and checked before the first is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerFast

from gbcd import wrong_answers
from gbcd.engine.calibration import Centering
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt_shapes import TASK
from gbcd.run.batch_size import fitting
from gbcd.run.calibration_reach import CalibrationReach, settled
from gbcd.run.inputs import InputsWriter
from gbcd.run.own_definitions import DefinitionFile, import_definitions, read_definitions, try_definitions
from gbcd.run.parts import Part, folder_of, record_parts, refuse_other_parts
from gbcd.run.results import COMPONENTS_FILE, encoded_components
from gbcd.run.shards import PLAN, Identity, Plan, Settings, Shard, cut, read_plan
from gbcd.run.sources import fingerprints, needs_meaning, refuse_unknown, sources
from gbcd.run.splitting import split
from gbcd.run.store import StorageError, Store
from gbcd.study import Compute, Study
from gbcd.versions import versions

#: Prompts that definitions of one's own are tried on.
TRIED = 2


class Planned(NamedTuple):
    """A plan, and whether it was there before.

    Attributes:
        part: of the study, the tasks of one model.
        store: the results folder of that part.
        plan: what is planned there.
        resumed: True if it was there before.
        shortfalls: of a new plan, which prompts the calibration sample does not reach, one text a task.
        own: files of definitions, as they were read.
    """

    part: Part
    store: Store
    plan: Plan
    resumed: bool
    shortfalls: tuple[str, ...] = ()
    own: tuple[DefinitionFile, ...] = ()


def open_plans(study: Study, device: str) -> tuple[Planned, ...]:
    """The plans of `study`, one for each model: stored ones where there are, else new ones, stored.

    Args:
        study: what to run.
        device: `cpu` or `cuda`; what `auto` means for the workers.

    Raises:
        BadInput: the study cannot be run, or the folder holds another; nothing was written.
        StorageError: the bucket does not answer now.
    """
    own = read_definitions(study.definitions)
    import_definitions(own)
    refuse_unknown(study)
    parts = split(study)
    store = Store(study.out)
    try:
        _refuse_other_layout(store, parts)
        with ExitStack() as drafts:
            ready = [drafts.enter_context(_drafted(study, part, device, own)) for part in parts]
            planned = tuple(store_plan()._replace(own=own) for store_plan in ready)
        if len(parts) > 1:
            record_parts(store, parts)
    except StorageError as error:
        if not error.is_lasting:
            raise
        raise BadInput(f"results cannot be kept in {study.out!r}: {error}") from error
    return planned


def study_of(plan: Plan, out: str, workers: int | None = None, definitions: Sequence[str] = ()) -> Study:
    """The study that would be planned as `plan`; a plan knows the hashes of `definitions` and not where they lie."""
    settings = plan.study.model_dump()
    compute = {name: settings.pop(name) for name in ("device", "dtype", "shard_size", "batch_size", "threads")}
    if workers is not None:
        compute["workers"] = workers
    if settings["prompts"] is not None:
        del settings["tasks"]
    given = {name: value for name, value in settings.items() if value is not None}
    return Study(**given, definitions=tuple(definitions), out=out, compute=Compute(**compute))


class _Settled(NamedTuple):
    """What stands in the plan where the study says `auto`."""

    batch_size: int
    centering: Centering


def _identity(
    study: Study, device: str, loaded: LoadedModel, auto: _Settled, own: tuple[DefinitionFile, ...]
) -> Identity:
    shared = study.model_dump(exclude={"out", "compute", "definitions"}) | study.compute.model_dump(
        exclude={"workers", "gpus_per_worker"}
    )
    shared |= {name: value for name, value in auto._asdict().items() if shared[name] == "auto"}
    if study.prompts is not None:
        shared |= {"tasks": (TASK,), "prompts_per_task": None}
    if not needs_meaning(study.wrong_answers):
        shared["embedding_model"] = None
    tokenizer = cast(PreTrainedTokenizerFast, loaded.tokenizer).backend_tokenizer.to_str()
    return Identity(
        study=Settings.model_validate({**shared, "device": device}),
        versions=versions(),
        hashes={
            "model": loaded.sha256,
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
            **fingerprints(study, loaded.tokenizer),
            **{f"definitions:{Path(file.path).name}": file.sha256 for file in own},
        },
    )


@contextmanager
def _drafted(
    study: Study, part: Part, device: str, own: tuple[DefinitionFile, ...]
) -> Generator[Callable[[], Planned]]:
    """The plan of one part, found, or drawn and checked; what is yielded stores it."""
    store = Store(folder_of(study.out, part))
    loaded = models.load(part.model, "cpu", study.compute.dtype)
    fields = {"model": part.model, "tasks": part.tasks, "wrong_answers": part.wrong_answers}
    study = study.model_copy(update=fields)
    if store.exists(PLAN):
        # another machine may have other memory, and what was decided stands
        before = read_plan(store).study
        plan = _resumed(store, _identity(study, device, loaded, _Settled(before.batch_size, before.centering), own))
        yield lambda: _with_components(Planned(part, store, plan, resumed=True), loaded)
        return
    with InputsWriter() as writer:
        settings = _identity(study, device, loaded, _Settled(1, "position"), own).study
        drawn = _write_prompts(writer, settings, loaded)
        size = fitting(loaded, drawn.n_tokens, drawn.n_sequences, device, study.compute.shard_size)
        missed: dict[Centering, int] = {
            name: sum(map(CalibrationReach.missed, some)) for name, some in drawn.reaches.items()
        }
        centering = settled(study.centering, missed, writer.rows)
        identity = _identity(study, device, loaded, _Settled(size, centering), own)
        yield lambda: _with_components(_created(part, store, identity, writer, drawn), loaded)


def _with_components(planned: Planned, loaded: LoadedModel) -> Planned:
    planned.store.create(COMPONENTS_FILE, encoded_components(loaded.components, loaded.spec.parallel))
    return planned


def _created(part: Part, store: Store, identity: Identity, writer: InputsWriter, drawn: _Drawn) -> Planned:
    if not store.is_local:
        store.refuse_overwriting()
    inputs = writer.publish(store)
    plan = Plan(identity=identity, inputs=inputs, prompts_sha256=writer.prompts_sha256, shards=tuple(drawn.shards))
    if store.create(PLAN, plan.model_dump_json(indent=1).encode()):
        shortfalls = filter(None, [reach.shortfall() for reach in drawn.reaches[identity.study.centering]])
        return Planned(part, store, plan, resumed=False, shortfalls=tuple(shortfalls))
    store.delete(inputs.path)
    return Planned(part, store, _resumed(store, identity), resumed=True)


def _refuse_other_layout(store: Store, parts: tuple[Part, ...]) -> None:
    """One model's plan lies in the folder itself, those of several in folders of their own; never both."""
    refuse_other_parts(store, parts)
    if len(parts) > 1 and store.exists(PLAN):
        raise BadInput(f"{store.location!r} holds another study, of one model: give another --out")


def _resumed(store: Store, identity: Identity) -> Plan:
    plan = read_plan(store)
    if differences := plan.identity.differences(identity):
        raise BadInput(
            f"{store.location!r} holds another study; what differs (there -> asked for):\n  "
            + "\n  ".join(differences)
            + "\nGive another --out, or ask for the same study to go on with it."
        )
    return plan


class _Drawn(NamedTuple):
    """Shards; the size of the largest unit, tokens of prompt and twin together, and how many sequences; what the
    calibration sample of each task reaches, by what it is centred by."""

    shards: list[Shard]
    n_tokens: int
    n_sequences: int
    reaches: dict[Centering, list[CalibrationReach]]


def _write_prompts(writer: InputsWriter, study: Settings, loaded: LoadedModel) -> _Drawn:
    shards: list[Shard] = []
    n_tokens = n_sequences = 1
    reaches: dict[Centering, list[CalibrationReach]] = {"template": [], "position": []}
    for task, n_prompts, prompts in sources(study, loaded):
        for centering, some in reaches.items():
            some.append(CalibrationReach(task, study.calibration_prompts, centering))
        for shard in cut(task, n_prompts, study.shard_size, len(shards), writer.rows):
            rows = list(islice(prompts, shard.n_prompts))
            encoded = loaded.encode(rows, study.bos)
            for definition in study.wrong_answers:
                wrong_answers.refuse_undefined(wrong_answers.get(definition), encoded, space_of(loaded.tokenizer))
            if not shards:
                try_definitions(study.wrong_answers, encoded[:TRIED], loaded)
            n_tokens = max(n_tokens, *(len(one.ids) + len(one.twin_ids or ()) for one in encoded))
            n_sequences = max(n_sequences, *(1 + (one.twin_ids is not None) for one in encoded))
            for some in reaches.values():
                some[-1].add(encoded)
            shards.append(shard)
            writer.add(encoded)
    return _Drawn(shards, n_tokens, n_sequences, reaches)
