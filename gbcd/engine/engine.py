"""The gradient engine: prompts in, tables of per-prompt norms out.

A batch is one forward pass and, for each definition of "maximally wrong", one backward pass in which every part of
every head and MLP gives its squared gradient norm, the same with centred inputs, its Taylor score and its share in
the batch's summed gradient. Nothing here knows files or workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import wrong_answers as registry
from gbcd.component import Component
from gbcd.engine.batch_tables import BatchRows, assemble
from gbcd.engine.calibration import Calibration, Centering, MeanAccumulator, TaskMeans
from gbcd.engine.gram import widened
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.engine.part_norms import BatchMeans, all_statistics
from gbcd.engine.tables import ShardTables
from gbcd.errors import BadInput
from gbcd.models import gpt2_pass
from gbcd.models.hooked_pass import HookedPass
from gbcd.models.load import LoadedModel
from gbcd.models.taps import ModelPass
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import Scene, WrongAnswer, output_targets
from gbcd.wrong_answers.losses import Target
from gbcd.wrong_answers.output_targets import OutputScene, output_scene


def pass_for(loaded: LoadedModel) -> ModelPass:
    """The fastest exact pass for a model: its own where one is written, else hooks on the library's modules."""
    if gpt2_pass.supports(loaded.model.config):
        return gpt2_pass.Gpt2Pass(loaded.model)
    return HookedPass(loaded.model, loaded.sites)


class Engine:
    """Computes shards with one model.

    Attributes:
        components: the parts, in the order of all tables.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        wrong_answers: Sequence[str],
        batch_size: int,
        calibration: Calibration | None = None,
    ) -> None:
        """Prepare `loaded` for the definitions `wrong_answers`; without `calibration` nothing is centred.

        Raises:
            BadInput: an unknown wrong answer, or a batch size below one.
        """
        if batch_size < 1:
            raise BadInput(f"batch size must be at least 1, not {batch_size}")
        self._loaded, self._batch_size, self._calibration = loaded, batch_size, calibration
        self._definitions = [registry.get(name) for name in wrong_answers]
        self._pass = pass_for(loaded)
        self._space = space_of(loaded.tokenizer)
        self._means: dict[str, MeanInputs] = {}
        self.components: list[Component] = loaded.components

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        """All statistics of `prompts`; batches are cut in the order given and numbered by their first prompt.

        Raises:
            BadInput: a definition does not apply to a prompt, or one prompt alone is too large for the memory.
        """
        for definition in self._definitions:
            registry.refuse_undefined(definition, prompts, self._space)
        rows: list[BatchRows] = []
        start = 0
        for _, same_task in groupby(prompts, key=lambda prompt: prompt.prompt.task):
            members = list(same_task)
            for offset in range(0, len(members), self._batch_size):
                batch = members[offset : offset + self._batch_size]
                rows.extend(self._batch_or_halves(batch, start + offset))
            start += len(members)
        return assemble(rows, self._loaded.tokenizer, self.components)

    def calibrate(self, prompts: Sequence[EncodedPrompt], centering: Centering = "position") -> Calibration:
        """Mean inputs over `prompts`, a sample of the study, apart by task."""
        tasks: dict[str, TaskMeans] = {}
        for task in sorted({prompt.prompt.task for prompt in prompts}):
            sample = [prompt for prompt in prompts if prompt.prompt.task == task]
            tasks[task] = self._task_means(sample, centering)
        return Calibration(centering, tasks)

    def _task_means(self, sample: Sequence[EncodedPrompt], centering: Centering) -> TaskMeans:
        group_of = [prompt.prompt.template if centering == "template" else "" for prompt in sample]
        groups = tuple(sorted(set(group_of)))
        length = max(len(prompt.ids) for prompt in sample)
        index = torch.tensor([groups.index(group) for group in group_of], device=self._loaded.device)
        sums = MeanAccumulator(groups, length)
        for start in range(0, len(sample), self._batch_size):
            batch = sample[start : start + self._batch_size]
            lengths = torch.tensor([len(prompt.ids) for prompt in batch], device=self._loaded.device)
            forward = self._pass.forward([(prompt.ids,) for prompt in batch], every_token=True)
            for rows in forward.inputs():
                real = torch.arange(rows.x.shape[1], device=lengths.device) < lengths.unsqueeze(1)
                sums.add(rows, real, index[start : start + len(batch)])
        tokens = torch.full((len(sample), length), -1)
        for row, prompt in enumerate(sample):
            tokens[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        return TaskMeans(groups, sums.means(), tokens, index.cpu())

    def _batch_or_halves(self, batch: Sequence[EncodedPrompt], number: int) -> Iterator[BatchRows]:
        try:
            found = list(self._batch(batch, number))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                size = f"{len(batch[0].ids)} tokens"
                raise BadInput(f"{batch[0].prompt.id} ({size}) does not fit into memory even alone: {error}") from error
            found = None
        # outside the handler, which would keep the failed attempt's tensors alive
        if found is not None:
            yield from found
        else:
            middle = len(batch) // 2
            yield from self._batch_or_halves(batch[:middle], number)
            yield from self._batch_or_halves(batch[middle:], number + middle)

    def _batch(self, batch: Sequence[EncodedPrompt], number: int) -> Iterator[BatchRows]:
        reads_twin = any(definition.reads_twin for definition in self._definitions)
        with_twin = [prompt for prompt in batch if reads_twin and prompt.twin_ids is not None]
        alone = [prompt for prompt in batch if not (reads_twin and prompt.twin_ids is not None)]
        for members in filter(None, (with_twin, alone)):
            yield from self._uniform_batch(members, number)

    def _uniform_batch(self, batch: Sequence[EncodedPrompt], number: int) -> list[BatchRows]:
        rows = self._all_definitions(batch, number)
        finite = torch.stack([of_definition.finite for of_definition in rows]).all(0).tolist()
        good = [prompt for prompt, is_finite in zip(batch, finite, strict=True) if is_finite]
        if not good or len(good) == len(batch):
            return rows
        # one NaN spoils the sum over the batch that coherence is made of, so such prompts are computed apart
        bad = [prompt for prompt, is_finite in zip(batch, finite, strict=True) if not is_finite]
        return self._all_definitions(good, number) + self._all_definitions(bad, number)

    def _all_definitions(self, batch: Sequence[EncodedPrompt], number: int) -> list[BatchRows]:
        reads_twin = any(definition.reads_twin for definition in self._definitions)
        units = [(p.ids, p.twin_ids) if reads_twin and p.twin_ids is not None else (p.ids,) for p in batch]
        forward = self._pass.forward(units)
        scene = self._scene(batch, forward.logits)
        means, calibrated = self._batch_means(batch)
        found: list[BatchRows] = []
        for definition in self._definitions:
            target = target_of(definition, scene)
            losses, d_logits = loss_gradient(target, forward.logits)
            norms = all_statistics(forward.backward(d_logits), self.components, len(batch), means)
            found.append(BatchRows(definition.name, number, batch, calibrated, scene, target, losses, norms))
        return found

    def _scene(self, batch: Sequence[EncodedPrompt], logits: Float[Tensor, "prompt seq vocab"]) -> Scene | OutputScene:
        if self._space is None:
            return scene_of(batch, logits[:, 0], self._loaded)
        return output_scene(batch, widened(logits), self._space)

    def _batch_means(self, batch: Sequence[EncodedPrompt]) -> tuple[BatchMeans | None, list[bool]]:
        task = batch[0].prompt.task
        if self._calibration is None or task not in self._calibration.tasks:
            return None, [True] * len(batch)
        means = self._calibration.tasks[task]
        if task not in self._means:
            device, vocab = self._loaded.device, self._loaded.vocabulary_size
            dtype = torch.float64 if self._loaded.dtype == torch.float64 else torch.float32
            self._means[task] = MeanInputs(means, vocab, device, dtype)
        groups = [self._calibration.group_of(prompt.prompt.template) for prompt in batch]
        reach = means.reach()
        calibrated = [
            reach.get(group, 0) >= max(len(prompt.ids), len(prompt.twin_ids or ()))
            for group, prompt in zip(groups, batch, strict=True)
        ]
        index = [means.groups.index(group) if group in means.groups else 0 for group in groups]
        return BatchMeans(self._means[task], torch.tensor(index, device=self._loaded.device)), calibrated


def target_of(definition: WrongAnswer, scene: Scene | OutputScene) -> Target:
    """What `definition` pulls the prediction towards."""
    if isinstance(scene, Scene):
        return definition.define(scene)
    return output_targets.target_of(definition.name, scene)


def scene_of(batch: Sequence[EncodedPrompt], logits: Float[Tensor, "prompt vocab"], loaded: LoadedModel) -> Scene:
    """What definitions of wrong answers may look at; `logits` are those of the prompts themselves, without twins."""
    answers, wrong = [prompt.answer_ids for prompt in batch], [prompt.wrong_ids for prompt in batch]
    farthest = [prompt.farthest_ids for prompt in batch]
    return Scene(widened(logits.detach()), answers, wrong, loaded.unembedding, farthest)


def loss_gradient(
    target: Target, logits: Float[Tensor, "prompt seq vocab"]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt read_seq vocab"]]:
    """Loss of each prompt and its gradient by the logits of the sequences that the target reads."""
    read = logits if target.reads_all else logits[:, :1]
    with torch.enable_grad():
        # where the model is nearly certain, 1 - p has few digits left in float32
        leaf = read.detach().double().requires_grad_()
        losses = target(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient.to(logits.dtype)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
