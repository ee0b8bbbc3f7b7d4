"""The reference model's tokenizer, its training text, and what training never sees."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_gpt2

from gbcd import tasks
from gbcd.prompting import datasets
from gbcd.prompting.prompt import Prompt
from training import corpus, held_out, train
from training.tokenizer import END_OF_TEXT, build_tokenizer

TOKENIZER = build_tokenizer(256)


def pieces(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])  # pyright: ignore[reportReturnType, reportArgumentType]


class TestTokenizer:
    @settings(deadline=None)
    @given(st.text(max_size=40))
    def test_any_text_can_be_written_and_read_back(self, text: str):
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (" from 1517 to 15", ["Ġfrom", "Ġ15", "17", "Ġto", "Ġ15"]),
            (" Dursley", ["ĠDurs", "ley"]),
            ("\n    :param size", ["ĊĠĠĠ", "Ġ:", "param", "Ġsize"]),
            (f"Zzk{END_OF_TEXT}", ["Z", "z", "k", END_OF_TEXT]),
        ],
    )
    def test_text_is_cut_as_the_tasks_need_it(self, text: str, expected: list[str]):
        assert pieces(text) == expected

    def test_every_word_of_the_data_is_one_token(self):
        for name in ("names", "places", "objects", "words"):
            assert all(len(pieces(f" {word}")) == 1 for word in datasets.words(name))


class TestHeldOut:
    @pytest.mark.parametrize("task", held_out.COMBINATION)
    def test_about_a_tenth_is_held_out(self, task: str):
        drawn = tasks.draw(task, TOKENIZER, 3000, seed=3)
        assert 0.07 < sum(held_out.is_held_out(prompt) for prompt in drawn) / len(drawn) < 0.13

    def test_a_pair_of_names_is_held_out_in_every_template_and_order(self):
        def prompt(template: str, answer: str, wrong: str) -> Prompt:
            return Prompt("ioi/0", "ioi", template, f"{answer} and {wrong} in {template}", (answer,), (wrong,))

        drawn = tasks.draw("ioi", TOKENIZER, 200, seed=4)
        for drawn_prompt in drawn:
            pair = drawn_prompt.answers[0], drawn_prompt.wrong_answers[0]
            alike = {held_out.is_held_out(prompt(*form)) for form in [("x", *pair), ("y", *pair), ("x", *pair[::-1])]}
            assert alike == {held_out.is_held_out(drawn_prompt)}

    def test_training_text_has_no_held_out_prompt(self):
        text = {document.prompt for document in corpus.documents(TOKENIZER, 4000, seed=0)}
        for task in held_out.COMBINATION:
            drawn = tasks.draw(task, TOKENIZER, 600, seed=1)
            held = {prompt.text for prompt in drawn if held_out.is_held_out(prompt)}
            assert held
            assert not held & text
            assert {prompt.text for prompt in drawn} & text


class TestCorpus:
    def test_rows_are_full_and_the_answer_weighs_more(self):
        written = [corpus.Document(" arm art", " ball", ".")] * 50
        rows = list(corpus.rows(TOKENIZER, written, 12, Random(0)))
        assert {len(row.ids) for row in rows} == {12}
        [answer] = TOKENIZER(" ball")["input_ids"]  # pyright: ignore[reportGeneralTypeIssues]
        for row in rows:
            assert [weight > 1 for weight in row.weights] == [token == answer for token in row.ids]

    def test_each_document_has_positions_of_its_own_and_its_first_token_is_not_predicted(self):
        written = [corpus.Document(" arm art", " ball", ".")] * 50
        for row in corpus.rows(TOKENIZER, written, 12, Random(0)):
            starts = [place for place, position in enumerate(row.positions) if position == 0]
            assert starts[0] == 0
            assert len(starts) > 1
            assert [place for place, weight in enumerate(row.weights) if weight == 0] == starts

    @settings(max_examples=20, deadline=None)
    @given(st.integers(4, 30))
    def test_the_right_tokens_of_a_row_stand_where_one_of_them_is_written(self, length: int):
        written = [corpus.Document(" arm art", " ball", ".", (" ball", " bank"))] * 20
        right = [TOKENIZER(word)["input_ids"][0] for word in (" ball", " bank")]  # pyright: ignore
        for row in corpus.rows(TOKENIZER, written, length, Random(0)):
            assert row.answers == [(place, right) for place, token in enumerate(row.ids) if token == right[0]]

    def test_the_seed_fixes_the_text(self):
        assert corpus.documents(TOKENIZER, 300, seed=1) == corpus.documents(TOKENIZER, 300, seed=1)
        assert corpus.documents(TOKENIZER, 300, seed=1) != corpus.documents(TOKENIZER, 300, seed=2)


def test_the_loss_asks_for_all_right_tokens_alike():
    model = tiny_gpt2()[0]
    row = corpus.Row([5, 6, 20, 7], [0.0, 1.0, 5.0, 1.0], [0, 1, 2, 3], [(2, [20, 30, 40])])
    logits = model(input_ids=torch.tensor([row.ids])).logits[:, :-1].detach()
    found = train._any_answer(torch.zeros(1, 3), logits, [row])
    written_in_turn = -logits[0, 1].log_softmax(-1)[[20, 30, 40]].mean()
    torch.testing.assert_close(found, torch.tensor([[0.0, float(written_in_turn), 0.0]]))
