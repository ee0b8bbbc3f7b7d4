"""The answer farthest in meaning: what the definition `semantic` pulls towards, found before a run starts.

A sentence-embedding model turns each answer into a vector; the wrong answer is the one whose vector is least similar
(cosine) to the mean of the right ones (Reimers and Gurevych 2019, arXiv 1908.10084). The candidates are all answers and
wrong answers of the study's prompts of the same task: other names for a name, other years for a year. The whole
vocabulary is no candidate: most of it is pieces of words, to which a sentence model gives no meaning, so that one odd
token would be the farthest from everything; and GPT-2's 50,257 tokens take minutes to embed where a task's hundreds
take a second.

Every distinct answer is embedded once, when the study is planned. What was found is stored with the prompts, so workers
need neither this model nor its library, and a resumed study keeps its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import hub
from gbcd.errors import BadInput
from gbcd.prompting.prompt import Prompt

INSTALL = "pip install 'gbcd[semantic]'"

Embed = Callable[[Sequence[str]], Float[Tensor, "text width"]]
"""Texts to vectors of length one."""


def require_library() -> None:
    """Check that sentence-transformers is installed, without importing it, which takes seconds.

    Raises:
        BadInput: it is not; the message has the command that installs it.
    """
    if find_spec("sentence_transformers") is None:
        raise BadInput(f"the wrong answer 'semantic' needs a library for sentence embeddings: {INSTALL}")


def load_embedder(name: str) -> Embed:
    """The sentence-embedding model `name`: a directory, or a name on the model hub.

    Raises:
        BadInput: the library is not installed, or the model is not available.
    """
    require_library()
    from sentence_transformers import SentenceTransformer

    try:
        source = name if Path(name).is_dir() else str(hub.folder_of(name, nested=True))
        model = SentenceTransformer(
            source, device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"sentence-embedding model {name!r} is no directory with such a model, and the model hub does not give it: "
            f"{reason}\nGo online, or pass a directory: --embedding-model DIR (embedding_model in a study)."
        ) from error

    def embed(texts: Sequence[str]) -> Float[Tensor, "text width"]:
        return model.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)  # pyright: ignore[reportReturnType]

    return embed


def farthest(
    answer_sets: Iterable[tuple[str, ...]], candidates: Iterable[str], embed: Embed
) -> dict[tuple[str, ...], str]:
    """For each set of right answers, the candidate outside it that is farthest in meaning.

    Equally far candidates (they differ in a space only, say) are decided by alphabetical order.

    Raises:
        BadInput: every candidate is a right answer.
    """
    sets = sorted(set(answer_sets))
    pool = sorted({*candidates, *(answer for answers in sets for answer in answers)})
    vectors = embed([text.strip() or text for text in pool])
    place = {text: row for row, text in enumerate(pool)}
    found: dict[tuple[str, ...], str] = {}
    for answers in sets:
        right = [place[answer] for answer in answers]
        if len(set(right)) == len(pool):
            shown = ", ".join(map(repr, answers[:3]))
            raise BadInput(
                f"'semantic' chooses among the answers of all prompts, and all of them are right for {shown}: "
                "add prompts with other answers, or wrong answers"
            )
        similarity = vectors @ vectors[right].mean(0)
        similarity[right] = torch.inf
        found[answers] = pool[int(similarity.argmin())]
    return found


def with_farthest(prompts: Sequence[Prompt], embed: Embed) -> list[Prompt]:
    """`prompts`, of one task, each with the answer farthest in meaning from its own.

    Raises:
        BadInput: a prompt has no answer in words, or no other answer than the right one occurs.
    """
    for prompt in prompts:
        if not prompt.answers:
            raise BadInput(f"'semantic' compares the meaning of words, and the answer of {prompt.id} is no word")
    chosen = farthest(
        {prompt.answers for prompt in prompts},
        {answer for prompt in prompts for answer in (*prompt.answers, *prompt.wrong_answers)},
        embed,
    )
    return [replace(prompt, farthest=chosen[prompt.answers]) for prompt in prompts]
