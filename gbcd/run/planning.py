"""From a study to a plan: draw and check all prompts, hash everything that goes in, store it, or resume what is there.

study -> device, model -> drafts of the tasks -> what was left open -> batches and shards -> plan.json

Everything that can be refused is refused here, before any work: unknown names, prompts that the tokenizer cannot take,
a device or a model that is not available, a folder that cannot be written or that holds another study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerFast

from gbcd import tasks
from gbcd.engine.self_check import self_check
from gbcd.engine.tables import CENTERED
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.run.batches import ahead, by_length, in_tables_of
from gbcd.run.draft import TaskDraft
from gbcd.run.inputs import InputsWriter
from gbcd.run.own_definitions import DefinitionFile, import_definitions, read_definitions, refuse_unsent
from gbcd.run.results import COMPONENTS_FILE, encoded_components
from gbcd.run.settling import as_before, settled, settled_device, with_compute
from gbcd.run.shards import PLAN, MeansShard, Plan, Sources, cut, cut_means, read_plan
from gbcd.run.sources import drawn, fingerprints, needs_meaning, refuse_unknown
from gbcd.run.store import StorageError, Store
from gbcd.study import PROMPTS_PER_TASK, Study, check_names
from gbcd.versions import versions

OnProgress = Callable[[str, int, int], None]


class Planned(NamedTuple):
    """A plan, and whether it was there before.

    Attributes:
        store: the results folder.
        plan: what is planned there.
        model: where the model lies now; a plan that is resumed may name another place.
        definitions: files of definitions, as they were read.
        resumed: True if it was there before.
        notes: of a new plan, what a reader should know of its prompts, in sentences.
    """

    store: Store
    plan: Plan
    model: str
    definitions: tuple[DefinitionFile, ...]
    resumed: bool
    notes: tuple[str, ...] = ()


def open_plan(study: Study, on_progress: OnProgress = lambda task, n_prompts, done: None) -> Planned:
    """The plan of `study`: the stored one where there is one, else a new one, stored.

    Args:
        study: what to plan.
        on_progress: told the task, how many prompts of it there are, and how many are checked.

    Raises:
        BadInput: the study cannot be run, or the folder holds another; nothing was written.
        StorageError: the bucket does not answer now.
    """
    own = read_definitions(study.definitions)
    import_definitions(own)
    refuse_unknown(study)
    if study.compute.workers:
        refuse_unsent(study.wrong_answers, own)
    study = _located(_on_its_model(study))
    store = Store(study.out)
    try:
        before = read_plan(store) if store.exists(PLAN) else None
        if before is not None:
            study = as_before(study, before.study)
        study = with_compute(study, device=settled_device(study.compute))
        loaded = models.load(study.model, _planning_device(study), study.compute.dtype, study.compute.gpu_share)
        mlps = [component.node for component in loaded.components if component.part in ("out", "down")]
        check_names("MLP", study.neurons, mlps, "neurons names MLPs by layer.")
        sources, notes = _sources(study, loaded, own), list[str]()
        plan = before or _created(store, study, loaded, sources, notes, on_progress)
        resumed = plan is before
        if plan is None:  # of another process, which was first, and may have measured other sizes
            plan, resumed = read_plan(store), True
            study = as_before(study, plan.study)
        if resumed and (differences := plan.differences(study, sources)):
            raise BadInput(
                f"{store.location!r} holds another study; what differs (there -> asked for):\n  "
                + "\n  ".join(differences)
                + "\nGive another --out, or ask for the same study to go on with it."
            )
        store.create(COMPONENTS_FILE, encoded_components(loaded.components, loaded.spec.parallel))
        return Planned(store, plan, study.model, own, resumed, () if resumed else tuple(notes))
    except StorageError as error:
        if not error.is_lasting:
            raise
        raise BadInput(f"results cannot be kept in {study.out!r}: {error}") from error


def _on_its_model(study: Study) -> Study:
    """`study` with the model that its tasks bring, where they bring one."""
    tasks_of: dict[str, list[str]] = {}
    for task in study.tasks:
        tasks_of.setdefault(tasks.get(task).model or study.model, []).append(task)
    if "model" in study.model_fields_set and tasks_of and study.model not in tasks_of:
        brought = ", ".join(f"{task} on {model}" for model, names in tasks_of.items() for task in names)
        raise BadInput(f"model {study.model!r} is used by no task, since they bring their own: {brought}")
    if len(tasks_of) > 1:
        apart = "; ".join(f"{', '.join(names)} on {model}" for model, names in tasks_of.items())
        raise BadInput(f"a study has one model, and these tasks have several: {apart}. Give each a study of its own")
    return study.model_copy(update={"model": next(iter(tasks_of), study.model)})


def _located(study: Study) -> Study:
    """`study` with paths that mean the same in every folder, and with the number of its prompts."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    fields: dict[str, Any] = {
        "definitions": tuple(map(absolute, study.definitions)),
        "prompts": study.prompts and absolute(study.prompts),
        "prompts_per_task": None if study.prompts else study.prompts_per_task or PROMPTS_PER_TASK,
    }
    places = {name: getattr(study, name) for name in ("model", "embedding_model")}
    fields |= {name: absolute(place) for name, place in places.items() if Path(place).exists()}
    return study.model_copy(update=fields)


def _planning_device(study: Study) -> str:
    """That of the study where this machine has it, so that what is timed is what workers do."""
    return study.compute.device if study.compute.device == "cpu" or torch.cuda.is_available() else "cpu"


def _sources(study: Study, loaded: LoadedModel, own: Sequence[DefinitionFile]) -> Sources:
    tokenizer = cast(PreTrainedTokenizerFast, loaded.tokenizer).backend_tokenizer.to_str()
    hashes = {
        "model": loaded.sha256,
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        **fingerprints(study, loaded.tokenizer),
    }
    if needs_meaning(study.wrong_answers):
        hashes["embedding_model"] = _folder_sha256(study.embedding_model)
    return Sources(
        versions=versions(),
        hashes=hashes,
        definitions={file.sha256: path for file, path in zip(own, study.definitions, strict=True)},
        facts=loaded.facts(study.bos),
    )


def _folder_sha256(name: str) -> str:
    """Hash of a model's weights; the name where it is one on the hub."""
    digest = hashlib.sha256()
    weights = sorted(Path(name).glob("*.safetensors"))
    for path in weights:
        digest.update(path.read_bytes())
    return digest.hexdigest() if weights else name


def _created(
    store: Store, study: Study, loaded: LoadedModel, sources: Sources, notes: list[str], on_progress: OnProgress
) -> Plan | None:
    """A new plan, stored, and `notes` on its prompts; None where another was stored meanwhile."""
    proof = self_check(loaded)
    with ExitStack() as stack:
        drafts: list[TaskDraft] = []
        for task, n_prompts, prompts in drawn(study, loaded):
            file = stack.enter_context(InputsWriter())
            drafts.append(TaskDraft(task, prompts, study, loaded, file, partial(on_progress, task, n_prompts)))
        study = settled(study, drafts, loaded)
        batch, size = cast(int, study.compute.batch_size), cast(int, study.compute.shard_size)
        writer = stack.enter_context(InputsWriter())
        for draft in drafts:
            for _ in ahead(in_tables_of(by_length(draft.tables(), batch), size), writer.add):
                pass  # while a shard is written, the next is ordered
            notes += draft.notes()
        if not store.is_local:
            store.refuse_overwriting()
        inputs = writer.publish(store)
    by, means = cast(Any, study.centering), list[MeansShard]()
    for draft in drafts if {*CENTERED} & {*study.statistics} else ():
        means += cut_means(draft.task, draft.coverage.sample_sizes(by))
        notes += filter(None, [draft.coverage.shortfall(by)])
    plan = Plan(
        study=study,
        sources=sources,
        inputs=inputs,
        self_check=proof,
        means=tuple(means),
        shards=cut({draft.task: draft.n_prompts for draft in drafts}, size),
    )
    if store.create(PLAN, plan.model_dump_json(indent=1).encode()):
        return plan
    store.delete(inputs.path)
    return None
