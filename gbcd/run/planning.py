"""From a study to a plan: draw and check all prompts, hash everything that goes in, store it, or resume what is there.

study -> device, model -> drafts of the tasks -> what was left open -> batches and shards -> plan.json

Everything that can be refused is refused here, before any work: unknown names, prompts that the tokenizer cannot take,
a device or a model that is not available, a folder that cannot be written or that holds another study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerFast

from gbcd import tasks, wrong_answers
from gbcd.engine.calibration import Centering
from gbcd.engine.engine import Engine
from gbcd.engine.self_check import self_check
from gbcd.engine.tables import CENTERED, STATISTICS
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run import shard_sizes
from gbcd.run.batches import by_length, in_tables_of
from gbcd.run.centring_coverage import settled
from gbcd.run.devices import settled_device
from gbcd.run.draft import TaskDraft
from gbcd.run.inputs import InputsWriter
from gbcd.run.norms_work import engine_of
from gbcd.run.own_definitions import DefinitionFile, import_definitions, read_definitions
from gbcd.run.results import COMPONENTS_FILE, encoded_components
from gbcd.run.shards import PLAN, Plan, Sources, cut, cut_means, read_plan
from gbcd.run.sources import drawn, fingerprints, n_per_task, needs_meaning, refuse_unknown
from gbcd.run.store import StorageError, Store
from gbcd.study import Study, check_names
from gbcd.versions import versions

OnProgress = Callable[[str, int, int], None]


class Planned(NamedTuple):
    """A plan, and whether it was there before.

    Attributes:
        store: the results folder.
        plan: what is planned there.
        model: where the model lies now; a plan that is resumed may name another place.
        resumed: True if it was there before.
        notes: of a new plan, what a reader should know of its prompts, in sentences.
    """

    store: Store
    plan: Plan
    model: str
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
    study = _located(_on_its_model(study))
    store = Store(study.out)
    try:
        before = read_plan(store) if store.exists(PLAN) else None
        if before is not None:
            study = _as_before(study, before.study)
        study = _with_compute(study, device=settled_device(study.compute))
        loaded = models.load(study.model, _planning_device(study), study.compute.dtype)
        mlps = [component.node for component in loaded.components if component.part in ("out", "down")]
        check_names("MLP", study.neurons, mlps, "neurons names MLPs by layer.")
        sources = _sources(study, loaded, own)
        if before is None:
            planned = _created(store, study, loaded, sources, on_progress)
        else:
            planned = Planned(store, _resumed(store, before, study, sources), study.model, resumed=True)
        store.create(COMPONENTS_FILE, encoded_components(loaded.components, loaded.spec.parallel))
        return planned
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
    """`study` with paths that mean the same in every folder."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    fields: dict[str, Any] = {
        "definitions": tuple(map(absolute, study.definitions)),
        "prompts": study.prompts and absolute(study.prompts),
        "prompts_per_task": None if study.prompts else n_per_task(study),
    }
    places = {name: getattr(study, name) for name in ("model", "embedding_model")}
    fields |= {name: absolute(place) for name, place in places.items() if Path(place).exists()}
    return study.model_copy(update=fields)


def _as_before(study: Study, before: Study) -> Study:
    """`study` with all that it leaves open as it was settled `before`."""
    open_compute = {name: getattr(before.compute, name) for name, value in study.compute if value == "auto"}
    fields = {
        "wrong_answers": study.wrong_answers or before.wrong_answers,
        "centering": before.centering if study.centering == "auto" else study.centering,
        "statistics": _statistics(study),
    }
    return _with_compute(study.model_copy(update=fields), **open_compute)


def _with_compute(study: Study, **fields: Any) -> Study:
    return study.model_copy(update={"compute": study.compute.model_copy(update=fields)})


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
    paths = (str(Path(file.path).expanduser().absolute()) for file in own)
    return Sources(
        versions=versions(),
        hashes=hashes,
        definitions={file.sha256: path for file, path in zip(own, paths, strict=True)},
        facts=loaded.facts(study.bos),
    )


def _folder_sha256(name: str) -> str:
    """Hash of a model's weights; the name where it is one on the hub."""
    digest = hashlib.sha256()
    weights = sorted(Path(name).glob("*.safetensors"))
    for path in weights:
        digest.update(path.read_bytes())
    return digest.hexdigest() if weights else name


def _resumed(store: Store, plan: Plan, study: Study, sources: Sources) -> Plan:
    if differences := plan.differences(study, sources):
        raise BadInput(
            f"{store.location!r} holds another study; what differs (there -> asked for):\n  "
            + "\n  ".join(differences)
            + "\nGive another --out, or ask for the same study to go on with it."
        )
    return plan


def _created(store: Store, study: Study, loaded: LoadedModel, sources: Sources, on_progress: OnProgress) -> Planned:
    asked, proof = study, self_check(loaded)
    with ExitStack() as stack:
        drafts: list[TaskDraft] = []
        for task, n_prompts, prompts in drawn(study, loaded):
            draft = TaskDraft(task, prompts, study, loaded, partial(on_progress, task, n_prompts))
            drafts.append(stack.enter_context(closing(draft)))
        study = _settled(study, drafts, loaded)
        batch, size = cast(int, study.compute.batch_size), cast(int, study.compute.shard_size)
        writer = stack.enter_context(InputsWriter())
        for draft in drafts:
            for shard in in_tables_of(by_length(draft.tables(), batch), size):
                writer.add(shard)
        shards = cut({draft.task: draft.n_prompts for draft in drafts}, size)
        centred = [draft for draft in drafts if {*CENTERED} & {*study.statistics}]
        means = tuple(
            shard
            for draft in centred
            for shard in cut_means(draft.task, draft.coverage[cast(Centering, study.centering)].sample_sizes())
        )
        if not store.is_local:
            store.refuse_overwriting()
        inputs = writer.publish(store)
        plan = Plan(study=study, sources=sources, inputs=inputs, self_check=proof, means=means, shards=shards)
        if not store.create(PLAN, plan.model_dump_json(indent=1).encode()):
            store.delete(inputs.path)
            first = read_plan(store)  # of another process, which may have measured other sizes
            study = _as_before(asked, first.study)
            return Planned(store, _resumed(store, first, study, sources), study.model, resumed=True)
    coverage = [draft.coverage[plan.centering].shortfall() for draft in centred]
    notes = [note for draft in drafts for note in draft.notes()]
    return Planned(store, plan, study.model, resumed=False, notes=tuple(filter(None, notes + coverage)))


def _settled(study: Study, drafts: Sequence[TaskDraft], loaded: LoadedModel) -> Study:
    """`study` with nothing left open."""
    n_prompts = sum(draft.n_prompts for draft in drafts)
    missed: dict[Centering, int] = {
        "template": sum(draft.coverage["template"].missed() for draft in drafts),
        "position": sum(draft.coverage["position"].missed() for draft in drafts),
    }
    fields = {
        "wrong_answers": study.wrong_answers or (_default_wrong_answer(drafts, loaded),),
        "centering": settled(study.centering, missed, n_prompts),
        "statistics": _statistics(study),
    }
    study = study.model_copy(update=fields)
    compute = study.compute
    batch, size = compute.batch_size, compute.shard_size
    if batch == "auto":
        batch = shard_sizes.batch_size(compute.device, max(draft.longest for draft in drafts))
        batch = batch if size == "auto" else min(batch, size)
    if size == "auto":
        seconds = _seconds_per_prompt(study, drafts, batch, loaded)
        row_bytes = 4 * len(study.statistics) * len(loaded.components) * len(study.wrong_answers)
        size = shard_sizes.shard_size(n_prompts, batch, compute.workers, seconds, row_bytes)
    return _with_compute(study, batch_size=batch, shard_size=batch * max(1, size // batch))


def _statistics(study: Study) -> tuple[str, ...]:
    """Those that a study computes, in the order of the tables."""
    return tuple(name for name in STATISTICS if name in (study.statistics or STATISTICS) or name == "grad_norm")


def _default_wrong_answer(drafts: Sequence[TaskDraft], loaded: LoadedModel) -> str:
    margin = wrong_answers.get("margin")
    is_defined = wrong_answers.why_undefined(margin, space_of(loaded.tokenizer)) is None
    return "margin" if is_defined and all(draft.has_wrong_answers for draft in drafts) else "inverse_logits"


def _seconds_per_prompt(study: Study, drafts: Sequence[TaskDraft], batch: int, loaded: LoadedModel) -> float | None:
    """Measured on the first batch of each task; None where the workers' device is not on this machine."""
    if loaded.device.type != study.compute.device:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(study.compute.threads)
    try:
        return max(_seconds(study, draft.first(batch), loaded) for draft in drafts)
    finally:
        torch.set_num_threads(threads)


def _seconds(study: Study, prompts: Sequence[EncodedPrompt], loaded: LoadedModel) -> float:
    calibration = Engine(loaded, study.wrong_answers).calibrate(prompts)
    return shard_sizes.seconds_per_prompt(engine_of(loaded, study, calibration).compute, prompts)
