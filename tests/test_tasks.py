"""The language tasks on both tokenizers: the reference model's own and, where its files are at hand, GPT-2's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gbcd import tasks
from gbcd.errors import BadInput
from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks import Family, Filled, Slot
from gbcd.tasks import _registry as registry
from training.tokenizer import build_tokenizer

LANGUAGE_TASKS = ["docstring", "greater_than", "induction", "ioi"]
GPT2 = Path(__file__).parents[2] / "shared" / "gpt2-tokenizer"


@pytest.fixture(scope="module", params=["reference", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "reference":
        return build_tokenizer(256)
    if not GPT2.is_dir():
        pytest.skip("the files of GPT-2's tokenizer are not beside the checkout (shared/gpt2-tokenizer)")
    return AutoTokenizer.from_pretrained(GPT2)


@pytest.fixture
def toy() -> Iterator[tasks.Task]:
    """A task from outside the package: two templates, 3 x 2 + 2 = 8 prompts."""

    @tasks.task("toy", metric="logit_difference")
    def toy(vocabulary: Vocabulary) -> Iterator[Family]:
        """The sky is blue."""
        del vocabulary
        yield Family(
            "pair", [Slot("a b", ["x", "y", "z"])], lambda words, _: Filled(f"{words['a']} {words['b']}", (" c",))
        )
        yield Family("one", [Slot("a", ["u", "v"])], lambda words, _: Filled(words["a"], (" c",)))

    yield toy
    del registry._tasks["toy"]  # pyright: ignore[reportPrivateUsage]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]


def test_the_four_language_tasks_are_registered():
    assert set(LANGUAGE_TASKS) <= set(tasks.names())


@pytest.mark.parametrize("name", LANGUAGE_TASKS)
class TestEveryTask:
    def test_a_seed_fixes_the_prompts_and_a_short_draw_begins_a_long_one(
        self, name: str, tokenizer: PreTrainedTokenizerBase
    ):
        long = tasks.draw(name, tokenizer, 300, seed=5)
        assert tasks.draw(name, tokenizer, 120, seed=5) == long[:120]
        assert tasks.draw(name, tokenizer, 300, seed=6) != long

    def test_prompts_are_distinct_with_ids_in_order(self, name: str, tokenizer: PreTrainedTokenizerBase):
        drawn = tasks.draw(name, tokenizer, 2000, seed=0)
        assert len({prompt.text for prompt in drawn}) == 2000
        assert [prompt.id for prompt in drawn] == [f"{name}/{number:06d}" for number in range(2000)]

    def test_answers_are_single_tokens_and_differ_from_wrong_ones(self, name: str, tokenizer: PreTrainedTokenizerBase):
        for prompt in tasks.draw(name, tokenizer, 200, seed=0):
            assert prompt.answers
            assert prompt.wrong_answers
            assert not set(prompt.answers) & set(prompt.wrong_answers)
            assert all(len(token_ids(tokenizer, text)) == 1 for text in prompt.answers + prompt.wrong_answers)

    def test_prompt_twin_and_counterfactual_have_the_one_length_of_their_template(
        self, name: str, tokenizer: PreTrainedTokenizerBase
    ):
        lengths: dict[str, set[int]] = defaultdict(set)
        for prompt in tasks.draw(name, tokenizer, 600, seed=1):
            texts = [text for text in (prompt.text, prompt.twin, prompt.counterfactual) if text is not None]
            lengths[prompt.template] |= {len(token_ids(tokenizer, text)) for text in texts}
            assert len(set(texts)) == len(texts)
        assert {template: found for template, found in lengths.items() if len(found) > 1} == {}

    def test_templates_have_equal_shares(self, name: str, tokenizer: PreTrainedTokenizerBase):
        families = len(list(tasks.get(name).families(Vocabulary(tokenizer))))
        counts: dict[str, int] = defaultdict(int)
        for prompt in tasks.draw(name, tokenizer, 3 * families, seed=2):
            counts[prompt.template] += 1
        assert set(counts.values()) == {3}
        assert len(counts) == families

    def test_published_circuit_is_named_with_its_source(self, name: str, tokenizer: PreTrainedTokenizerBase):
        circuit = tasks.get(name).circuit
        assert circuit is not None
        assert circuit.source
        assert set(circuit.nodes) == {node for nodes in circuit.classes.values() for node in nodes}


class TestIoi:
    def test_names_places_templates_and_orders_are_enough(self):
        templates = [family.template for family in tasks.get("ioi").families(Vocabulary(build_tokenizer(256)))]
        assert len({template.split("/")[0] for template in templates}) >= 15
        assert {template.split("/")[1] for template in templates} == {"abba", "baba"}
        assert len(datasets.words("names")) >= 100

    def test_roles_of_the_names(self, tokenizer: PreTrainedTokenizerBase):
        for prompt in tasks.draw("ioi", tokenizer, 300, seed=0):
            indirect, subject = prompt.answers[0], prompt.wrong_answers[0]
            tokens = Vocabulary(tokenizer).pieces([prompt.text, prompt.twin or "", prompt.counterfactual or ""])
            text, twin, counterfactual = tokens
            assert (text.count(indirect), text.count(subject)) == (1, 2)
            assert (twin.count(indirect), twin.count(subject)) == (2, 1)
            assert (counterfactual.count(indirect), counterfactual.count(subject)) == (1, 1)
            assert sum(a != b for a, b in zip(text, twin, strict=True)) == 1
            first = min((indirect, subject), key=text.index)
            assert first == (subject if prompt.template.endswith("baba") else indirect)


class TestGreaterThan:
    def test_years_are_cut_in_two_and_every_end_is_right_or_wrong(self, tokenizer: PreTrainedTokenizerBase):
        for prompt in tasks.draw("greater_than", tokenizer, 300, seed=0):
            [start] = [word.strip(",") for word in prompt.text.split() if word.strip(",").isdigit() and len(word) > 3]
            assert Vocabulary(tokenizer).pieces([f" {start}"]) == [[f" {start[:2]}", start[2:]]]
            assert prompt.text.endswith(f" {start[:2]}")
            assert all(end > start[2:] for end in prompt.answers)
            assert all(end <= start[2:] for end in prompt.wrong_answers)
            assert sorted(prompt.answers + prompt.wrong_answers) == [f"{end:02d}" for end in range(100)]


class TestDocstring:
    def test_the_answer_is_the_third_parameter_and_the_counterfactual_does_not_name_it(
        self, tokenizer: PreTrainedTokenizerBase
    ):
        for prompt in tasks.draw("docstring", tokenizer, 200, seed=0):
            parameters = prompt.text.partition("(self, ")[2].partition("):")[0].split(", ")
            assert [f" {parameters[2]}", f" {parameters[3]}"] == [prompt.answers[0], prompt.wrong_answers[0]]
            changed = Vocabulary(tokenizer).pieces([prompt.counterfactual or ""])[0]
            assert not {f" {parameter}" for parameter in parameters} & set(changed)


class TestInduction:
    def test_the_last_token_was_followed_by_the_answer_once_and_never_in_the_counterfactual(
        self, tokenizer: PreTrainedTokenizerBase
    ):
        for prompt in tasks.draw("induction", tokenizer, 400, seed=0):
            texts = [prompt.text, prompt.twin or "", prompt.counterfactual or ""]
            text, twin, counterfactual = Vocabulary(tokenizer).pieces(texts)
            assert followers(text) == [prompt.answers[0]]
            assert prompt.wrong_answers[0] in followers(twin)
            assert followers(counterfactual) == []
            assert prompt.wrong_answers[0] in text


def followers(tokens: list[str]) -> list[str]:
    """What followed earlier mentions of the last token."""
    return [after for token, after in pairwise(tokens) if token == tokens[-1]]


class TestDrawing:
    def test_everything_can_be_drawn_once_and_not_more(self, toy: tasks.Task):
        tokenizer = build_tokenizer(64)
        assert toy.capacity(tokenizer) == 8
        assert len({prompt.text for prompt in tasks.draw("toy", tokenizer, 8, seed=0)}) == 8
        with pytest.raises(BadInput, match=r"9 distinct prompts of task 'toy'.*can give 8"):
            tasks.draw("toy", tokenizer, 9, seed=0)

    @pytest.mark.parametrize("n", [0, -3])
    def test_less_than_one_prompt_is_refused(self, n: int):
        with pytest.raises(BadInput, match="at least 1"):
            tasks.draw("ioi", build_tokenizer(64), n, seed=0)

    def test_an_unknown_task_is_refused_with_the_known_ones(self):
        with pytest.raises(BadInput, match=r"no task 'ioj'.*docstring, greater_than, induction, ioi"):
            tasks.get("ioj")

    def test_a_name_is_given_once(self, toy: tasks.Task):
        with pytest.raises(BadInput, match="task 'toy' already"):
            tasks.task("toy", metric="logit_difference")(toy.families)

    def test_the_docstring_is_the_description(self, toy: tasks.Task):
        assert toy.description == "The sky is blue."
        assert toy.circuit is None

    @pytest.mark.parametrize("name", LANGUAGE_TASKS)
    def test_a_tokenizer_without_fitting_words_is_refused(self, name: str):
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        letters = Tokenizer(models.BPE({byte: number for number, byte in enumerate(pre_tokenizer.alphabet())}, []))
        letters.pre_tokenizer = pre_tokenizer
        letters.decoder = decoders.ByteLevel()
        with pytest.raises(BadInput, match="needs at least"):
            tasks.draw(name, PreTrainedTokenizerFast(tokenizer_object=letters), 1, seed=0)


@settings(deadline=None)
@given(words=st.integers(1, 6), places=st.integers(1, 4))
def test_a_slot_counts_and_numbers_every_arrangement_once(words: int, places: int):
    slot = Slot(" ".join(f"p{place}" for place in range(places)), [f"w{word}" for word in range(words)])
    arrangements = {tuple(slot.at(index).values()) for index in range(slot.size)}
    assert len(arrangements) == slot.size
    assert all(len(set(arrangement)) == places for arrangement in arrangements)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_family_numbers_every_choice_once(sizes: list[int]):
    slots = [Slot(f"s{number}", [f"w{word}" for word in range(size)]) for number, size in enumerate(sizes)]
    family = Family("all", slots, lambda words, _: Filled(" ".join(words.values()), (" x",)))
    assert len({family.at(index).text for index in range(family.size)}) == family.size


def test_others_are_new_and_different():
    chosen = tasks.others(["a", "b", "c", "d"], ["a"], 3, Random(0))
    assert sorted(chosen) == ["b", "c", "d"]
