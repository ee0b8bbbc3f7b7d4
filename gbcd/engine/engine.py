"""The gradient engine: a batch of prompts in, tables of per-prompt statistics out.

A batch is one forward pass that keeps its graph, one forward pass without a graph over the counterfactuals (or
partners), and for each wrong answer one backward pass (`passes.py`), in which every part of every head and MLP gives
its gradient norm and its attribution against each reference (`scores.py`). Nothing here knows files or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import tasks
from gbcd import wrong_answers as registry
from gbcd.component import Component
from gbcd.engine.batch_tables import BatchRows, LossRows, assemble, failed
from gbcd.engine.calibration import Calibration, Centering, TaskMeans, means_of
from gbcd.engine.gram import widened
from gbcd.engine.passes import Passes
from gbcd.engine.references import MeanReference, MeanTables, Reference
from gbcd.engine.tables import STATISTICS, ShardTables
from gbcd.errors import BadInput
from gbcd.models.captured import InputRows
from gbcd.models.decoder import Run
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel
from gbcd.models.packing import Example, Packed, pack
from gbcd.models.rules import RulesName
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import LossContext, WrongAnswer, output_targets
from gbcd.wrong_answers.losses import Target
from gbcd.wrong_answers.output_targets import OutputContext, output_context


class Engine:
    """Computes batches with one model.

    Attributes:
        components: the parts, in the order of all tables.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        wrong_answers: Sequence[str],
        calibration: Calibration | None = None,
        rules: RulesName = "plain",
        edges: bool = False,
        neurons: Sequence[str] = (),
        ig_steps: int = 1,
        statistics: Collection[str] = STATISTICS,
    ) -> None:
        """Prepare `loaded` for the definitions `wrong_answers`.

        Args:
            loaded: the model.
            wrong_answers: names of definitions.
            calibration: mean inputs; without them nothing is centred.
            rules: backward rules.
            edges: score edges, too.
            neurons: MLPs whose neurons are scored, too.
            ig_steps: points between counterfactual and prompt at which the gradient of attributions is taken.
            statistics: names of what is computed.

        Raises:
            BadInput: an unknown wrong answer.
        """
        self._loaded, self._calibration = loaded, calibration
        self._definitions = [registry.get(name) for name in wrong_answers]
        self._passes = Passes(loaded.decoder, loaded.components, rules, edges, neurons, ig_steps, statistics)
        self._space = space_of(loaded.tokenizer)
        self._means: dict[str, MeanTables] = {}
        self.components: list[Component] = loaded.components

    def compute(self, batch: Sequence[EncodedPrompt]) -> ShardTables:
        """All statistics of a batch of prompts of one task, rows in its order.

        A batch that does not fit into memory, or that raises, is halved until the prompt that fails is alone: it gets
        the status `failed` and the reason, and the others their values.
        """
        return assemble(batch, self._rows(batch), self._loaded.tokenizer, self.components)

    def calibrate(
        self,
        prompts: Sequence[EncodedPrompt],
        centering: Centering = "position",
        batch_size: int = 64,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Calibration:
        """Mean inputs over `prompts`, a sample of the study, apart by task.

        Args:
            prompts: the sample; a prompt that does not run, even alone, is in no mean.
            centering: what is averaged apart.
            batch_size: prompts in a forward pass; halved where one does not run.
            on_progress: told how many prompts of the task are done.
        """
        means: dict[str, TaskMeans] = {}
        for task in sorted({prompt.prompt.task for prompt in prompts}):
            sample = [prompt for prompt in prompts if prompt.prompt.task == task]
            means[task] = means_of(sample, centering, self._inputs(sample, batch_size, on_progress))
        return Calibration(centering, means)

    def pack(self, examples: Sequence[Example]) -> Packed:
        """Lay examples out for the model."""
        return packed_for(self._loaded, examples)

    def _inputs(
        self, sample: Sequence[EncodedPrompt], batch_size: int, on_progress: Callable[[int], None]
    ) -> Iterator[tuple[range, Sequence[InputRows]]]:
        """Inputs of maps of the prompts that run, batch by batch."""
        for start in range(0, len(sample), batch_size):
            stop = min(start + batch_size, len(sample))
            for rows, run in self._runs(sample, range(start, stop)):
                yield rows, run.inputs()
            on_progress(stop)

    def _runs(self, sample: Sequence[EncodedPrompt], rows: range) -> Iterator[tuple[range, Run]]:
        """Forward passes over a batch, or over its halves, without prompts that do not run alone."""
        try:
            packed = self.pack([(sample[row].ids,) for row in rows])
            run = self._loaded.decoder.run(packed, Options(keep=True, every_token=True))
        except Exception:
            run = None
        if run is not None:
            yield rows, run
        elif len(rows) > 1:
            middle = rows.start + len(rows) // 2
            yield from self._runs(sample, range(rows.start, middle))
            yield from self._runs(sample, range(middle, rows.stop))

    def _rows(self, batch: Sequence[EncodedPrompt]) -> Iterator[BatchRows]:
        """Results of a batch, or of its halves."""
        try:
            found = list(self._batch(batch))
        except Exception as error:
            found = [failed(batch[0], self._definitions, _reason(error))] if len(batch) == 1 else None
        # outside the handler, which would keep the failed attempt's tensors alive
        if found is not None:
            yield from found
        else:
            middle = len(batch) // 2
            yield from self._rows(batch[:middle])
            yield from self._rows(batch[middle:])

    def _batch(self, batch: Sequence[EncodedPrompt]) -> Iterator[BatchRows]:
        """Prompts with and without a twin apart, since a batch needs examples of equally many sequences."""
        reads_twin = any(definition.reads_twin for definition in self._definitions)
        with_twin = [prompt for prompt in batch if reads_twin and prompt.twin_ids is not None]
        alone = [prompt for prompt in batch if not (reads_twin and prompt.twin_ids is not None)]
        if with_twin:
            yield self._computed(with_twin, [(p.ids, p.twin_ids or ()) for p in with_twin])
        if alone:
            yield self._computed(alone, [(p.ids,) for p in alone])

    def _computed(self, batch: Sequence[EncodedPrompt], examples: Sequence[Example]) -> BatchRows:
        run = self._passes.run(self.pack(examples))
        if self._space is None:
            context = loss_context(batch, run.logits[:, 0], self._loaded)
        else:
            context = output_context(batch, widened(run.logits), self._space)
        is_calibrated, means = self._means_of(batch)
        has_other, others = self._others(batch, examples)
        targets = [target_of(definition, context) for definition in self._definitions]
        losses = [losses_of(target, run.logits) for target in targets]
        scores = self._passes.scores(run, others, means, [partial(_d_logits, target) for target in targets])
        rows = [
            LossRows(definition.name, target, loss, *of_loss)
            for definition, target, loss, of_loss in zip(self._definitions, targets, losses, scores, strict=True)
        ]
        return BatchRows(batch, context, tuple(rows), is_calibrated, has_other)

    def _others(self, batch: Sequence[EncodedPrompt], examples: Sequence[Example]) -> tuple[list[bool], Packed | None]:
        """Which prompts have a counterfactual or partner, and these, packed; other prompts stand for themselves."""
        # a twin is compared with the prompt's counterfactual too, position by position
        has_other = [
            prompt.reference_ids is not None and all(len(sequence) == len(prompt.ids) for sequence in example)
            for prompt, example in zip(batch, examples, strict=True)
        ]
        if not (any(has_other) and self._passes.compares):
            return has_other, None
        others = [
            (prompt.reference_ids if has and prompt.reference_ids is not None else prompt.ids,)
            for prompt, has in zip(batch, has_other, strict=True)
        ]
        return has_other, self.pack(others)

    def _means_of(self, batch: Sequence[EncodedPrompt]) -> tuple[list[bool], dict[str, Reference]]:
        """Which prompts the mean inputs reach, and these as a reference, where there are any."""
        task = batch[0].prompt.task
        if self._calibration is None or task not in self._calibration.tasks:
            return [False] * len(batch), {}
        means = self._calibration.tasks[task]
        if task not in self._means:
            self._means[task] = MeanTables(means, self._loaded.decoder.token_table)
        sample = frozenset(means.members)
        groups = [self._calibration.group_of(prompt.prompt.template) for prompt in batch]
        index = [means.groups.index(group) if group in means.groups else 0 for group in groups]
        is_member = [prompt.prompt.id in sample for prompt in batch]
        both = (torch.tensor(values, device=self._loaded.device) for values in (index, is_member))
        reach = means.reach()
        is_calibrated = [
            reach.get(group, 0) >= max(len(prompt.ids), len(prompt.twin_ids or ()))
            for group, prompt in zip(groups, batch, strict=True)
        ]
        return is_calibrated, {"mean": MeanReference(self._means[task], *both)}


def packed_for(loaded: LoadedModel, examples: Sequence[Example]) -> Packed:
    """Lay examples out for `loaded`."""
    spec = loaded.spec
    return pack(examples, loaded.device, causal=spec.causal, every_token=spec.reads_every_token)


def target_of(definition: WrongAnswer, context: LossContext | OutputContext) -> Target:
    """What `definition` pulls the prediction towards.

    Raises:
        BadInput: the definition writes into the model's weights.
    """
    if not isinstance(context, LossContext):
        return output_targets.target_of(definition.name, context)
    with unchanged_weights(definition, context):
        # a copy each: a definition that writes into it changes nothing for the others
        return definition.define(context._replace(logits=context.logits.clone()))


@contextmanager
def unchanged_weights(definition: WrongAnswer, context: LossContext) -> Generator[None]:
    """Within this context `definition` looks at `context`, whose unembedding is the model's own.

    Raises:
        BadInput: the definition wrote into it.
    """
    version = context.unembedding._version  # pyright: ignore[reportPrivateUsage]
    yield
    if context.unembedding._version != version:  # pyright: ignore[reportPrivateUsage]
        raise BadInput(
            f"{definition.name} writes into context.unembedding, the model's own weights: take a copy, "
            "context.unembedding.clone()"
        )


def loss_context(
    batch: Sequence[EncodedPrompt], logits: Float[Tensor, "prompt vocab"], loaded: LoadedModel
) -> LossContext:
    """What definitions of wrong answers may look at, of prompts of one task; `logits` are those without twins."""
    answers, wrong = [prompt.answer_ids for prompt in batch], [prompt.wrong_ids for prompt in batch]
    farthest = [prompt.farthest_ids for prompt in batch]
    metric = tasks.metric_of(batch[0].prompt.task)
    return LossContext(widened(logits.detach()), answers, wrong, loaded.unembedding, farthest, metric)


def losses_of(target: Target, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
    """Loss of each prompt, from the logits of the sequences that the target reads."""
    # where the model is nearly certain, 1 - p has few digits left in float32
    return target((logits if target.reads_all else logits[:, :1]).double())


def loss_gradient(
    target: Target, logits: Float[Tensor, "prompt seq vocab"]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt read_seq vocab"]]:
    """Loss of each prompt and its gradient by the logits of the sequences that the target reads."""
    read = logits if target.reads_all else logits[:, :1]
    with torch.enable_grad():
        leaf = read.detach().double().requires_grad_()
        losses = losses_of(target, leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient.to(logits.dtype)


def _d_logits(target: Target, run: Run) -> Float[Tensor, "prompt read_seq vocab"]:
    return loss_gradient(target, run.logits)[1]


def _reason(error: Exception) -> str:
    if isinstance(error, BadInput):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"does not fit into memory even alone: {error}"
    return f"{type(error).__name__}: {error}"
