"""What `gbcd doctor` says of a model: tokens, embeddings, the decoder's proof, batches, and how long a study takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from gbcd.engine.engine import Engine
from gbcd.engine.self_check import dependence_on_batches, random_tokens, self_check
from gbcd.engine.tables import CENTERED, COMPARED, STATISTICS
from gbcd.models.load import LoadedModel
from gbcd.printing import duration
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt

#: Prompts of a batch that is timed, their tokens, and how often.
BATCH, LENGTH, ROUNDS = 8, 20, 3
#: Seconds for the first batch beyond which no other is timed: of a large model, nobody waits for shares.
QUICK = 5.0
#: Share of the tokens that a partner has, too, as a counterfactual of `ioi` does.
SHARED = 0.7


def architecture(loaded: LoadedModel) -> str:
    """Layers and nodes."""
    parts = [part for part in loaded.components if part.is_circuit_part]
    n_nodes, n_layers = len({part.node for part in parts}), len({part.layer for part in parts})
    return f"{loaded.name}: {n_layers} layers, {n_nodes} components, context of {loaded.context} tokens"


def tokens(loaded: LoadedModel) -> str:
    """Tokens that the tokenizer adds, and rows of the embedding that stand for none."""
    added = loaded.facts("auto")["special_tokens"]
    n_tokens = loaded.n_tokens or loaded.vocabulary_size
    padded = loaded.vocabulary_size - n_tokens
    rows = f"{padded:,} more rows of the embedding stand for no token and are left out" if padded else "no padded rows"
    return f"{n_tokens:,}; added to a prompt: {added}; {rows}"


def embeddings(loaded: LoadedModel) -> str:
    """Whether embedding and unembedding are one matrix."""
    return (
        "tied: embedding and unembedding are one matrix, and embed.tied is the norm of its gradient"
        if loaded.spec.embedding.tied
        else "embedding and unembedding are two matrices"
    )


def decoder(loaded: LoadedModel) -> str:
    """The model's proof; see `gbcd.engine.self_check`."""
    found = self_check(loaded)
    blocks = f"the first {found.n_blocks} of {loaded.spec.n_layers} blocks"
    return (
        f"logits are the library's to {found.logits:.0g} of their deviation; norms are those of float64 autograd to "
        f"{found.norms:.0g} ({blocks})"
    )


def batches(loaded: LoadedModel) -> str:
    """How much results depend on what a prompt shares its batch with."""
    share = dependence_on_batches(loaded)
    return (
        f"in {str(loaded.dtype).removeprefix('torch.')} a norm changes by {share:.0g} of itself at most with its batch"
    )


def speed(loaded: LoadedModel) -> str:
    """Prompts per second with every statistic of a default study, memory of this process, and what less would take."""
    prompts = _random_prompts(loaded)
    seconds = _seconds_of_batches(loaded, prompts)
    whole, rate = seconds["all"], BATCH / seconds["all"]
    shares = ", ".join(f"{label} {one / whole:.2f}" for label, one in seconds.items() if label != "all")
    compared = f"; of the time of all statistics: {shares}" if shares else ""
    return (
        f"{rate:.3g} prompts of {len(prompts[0].ids)} tokens a second on one worker ({loaded.device.type}); "
        f"1,000 prompts take {duration(1000 / rate)}; memory {_peak_bytes(loaded) / 2**30:.1f} GiB{compared}"
    )


def _seconds_of_batches(loaded: LoadedModel, prompts: Sequence[EncodedPrompt]) -> dict[str, float]:
    """The quickest batch of each kind of study, which take turns; of a slow model, the first batch alone."""
    definitions = ["foil"]
    calibration = Engine(loaded, definitions).calibrate(prompts, batch_size=BATCH)
    kinds = {
        "all": STATISTICS,
        "grad_norm alone": ("grad_norm",),
        "without means": tuple(one for one in STATISTICS if one not in CENTERED),
        "without counterfactuals": tuple(one for one in STATISTICS if one not in COMPARED),
    }
    engines = {label: Engine(loaded, definitions, calibration, statistics=names) for label, names in kinds.items()}
    first = _seconds(engines["all"], prompts)
    if first > QUICK:
        return {"all": first}
    engines["with edges"] = Engine(loaded, definitions, calibration, edges=True)
    # the first round does what is done once
    rounds = [{label: _seconds(engine, prompts) for label, engine in engines.items()} for _ in range(1 + ROUNDS)]
    return {label: min(one[label] for one in rounds) for label in engines}


def _seconds(engine: Engine, prompts: Sequence[EncodedPrompt]) -> float:
    start = time.perf_counter()
    engine.compute(prompts)
    return time.perf_counter() - start


def _random_prompts(loaded: LoadedModel) -> list[EncodedPrompt]:
    """Prompts, each with a partner that shares its first tokens."""
    length, found = min(LENGTH, loaded.context), list[EncodedPrompt]()
    for index in range(BATCH):
        answer, wrong = random_tokens(loaded, 2, index)
        record = Prompt(f"doctor/{index}", "doctor", "doctor", "", ())
        ids, partner = (random_tokens(loaded, length, seed) for seed in (index, BATCH + index))
        n = int(SHARED * length)
        found.append(EncodedPrompt(record, ids, (answer,), (wrong,), None, None, partner_ids=(*ids[:n], *partner[n:])))
    return found


def _peak_bytes(loaded: LoadedModel) -> int:
    """Of the device; on the processor, of this process."""
    import torch

    if loaded.device.type == "cuda":
        return torch.cuda.max_memory_allocated(loaded.device)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def checks(loaded: LoadedModel) -> dict[str, Callable[[LoadedModel], str]]:
    """Checks by the label of their line, in order; a compiled program is too small for its speed to matter."""
    found = {"model": architecture, "tokens": tokens, "embeddings": embeddings, "decoder": decoder, "batches": batches}
    return found if loaded.spec.reads_every_token else {**found, "speed": speed}
