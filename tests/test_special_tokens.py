"""Tokens around a text: which are added, which a study asks for, and a refusal of an end that is none of the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from field_tokenizers import field_tokenizer
from test_cli import gbcd
from tiny_models import saved_tiny_gpt2
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gbcd.errors import BadInput
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.special_tokens import Bos, added, described
from gbcd.prompting.tokens import encode

PROMPT = Prompt("p/0", "p", "t", "Mary gave a drink to", (" John",), twin="John gave a drink to")


def closed(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with its end of text behind every text, as T5's and some instruction-tuned ones have it."""
    name, number = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"$A {name}", None, [(name, number)])
    return tokenizer


@pytest.mark.parametrize(("name", "front"), [("qwen", ()), ("llama2", ("<s>",))])
def test_each_choice_of_beginning(name: str, front: tuple[str, ...]) -> None:
    tokenizer = field_tokenizer(name)
    assert tokenizer.convert_ids_to_tokens(list(added(tokenizer).front)) == list(front)
    rows: dict[Bos, tuple[int, ...]] = {
        bos: encode([PROMPT], tokenizer, bos=bos)[0].ids for bos in ("auto", "always", "never")
    }
    assert rows["always"] == (tokenizer.bos_token_id, *rows["never"])
    assert rows["auto"] == rows["always" if front else "never"]
    assert described(tokenizer, "auto") == ("'<s>' in front" if front else "none")
    assert (described(tokenizer, "always"), described(tokenizer, "never")) == ("'<s>' in front", "none")


def test_the_twin_begins_as_the_prompt_does() -> None:
    [one] = encode([PROMPT], field_tokenizer("qwen"), bos="always")
    assert one.twin_ids is not None
    assert one.twin_ids[0] == one.ids[0] == field_tokenizer("qwen").bos_token_id


def test_a_beginning_that_is_written_is_not_doubled() -> None:
    written = Prompt("p/0", "p", "t", "<s>Mary gave a drink to", (" John",))
    tokenizer = field_tokenizer("qwen")
    assert encode([written], tokenizer, bos="always")[0].ids == encode([PROMPT], tokenizer, bos="always")[0].ids


def test_always_needs_a_beginning() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=field_tokenizer("qwen").backend_tokenizer)
    with pytest.raises(BadInput, match="no beginning-of-text token"):
        encode([PROMPT], tokenizer, bos="always")


def test_an_appended_end_of_text_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    model = saved_tiny_gpt2(tmp_path / "model")
    closed(AutoTokenizer.from_pretrained(model)).save_pretrained(model)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Aaron gave a drink to", "answer": " Andrew"}) + "\n")
    out = tmp_path / "out"
    for command in (["show", "ioi"], ["show", "--prompts", str(tmp_path / "p.jsonl")],
                    ["plan", "--task", "ioi", "--device", "cpu", "--out", str(out)]):  # fmt: skip
        status, _, refused = gbcd(*command, "--model", model)
        assert status == 2
        assert "ends every text with '<|endoftext|>', and the answer would be read behind it" in " ".join(
            refused.split()
        )
    assert not out.exists()
    status, said, _ = gbcd("show", "ioi", "--model", model, "--bos", "never")
    assert status == 0
    assert "special tokens      none" in said
