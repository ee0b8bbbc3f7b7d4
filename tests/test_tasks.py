"""The language tasks on tokenizers of every kind: the reference model's, those of the field, GPT-2's, SmolLM2's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from field_tokenizers import FIELD, field_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from real_model import smollm2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gbcd import tasks
from gbcd.errors import BadInput
from gbcd.prompting import datasets
from gbcd.prompting.continuations import continuations
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks import Family, Filled, Slot
from training.tokenizer import build_tokenizer

LANGUAGE_TASKS = ["docstring", "greater_than", "induction", "ioi"]
GPT2 = Path(__file__).parents[2] / "shared" / "gpt2-tokenizer"


@pytest.fixture(scope="module", params=["reference", *FIELD, "gpt2", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "reference":
        return build_tokenizer(256)
    if request.param in FIELD:
        return field_tokenizer(request.param)
    if request.param == "smollm2":
        return AutoTokenizer.from_pretrained(smollm2())
    if not GPT2.is_dir():
        pytest.skip("the files of GPT-2's tokenizer are not beside the checkout (shared/gpt2-tokenizer)")
    return AutoTokenizer.from_pretrained(GPT2)


@pytest.fixture
def toy(forgotten: None) -> tasks.Task:
    """A task from outside the package: two templates, 3 x 2 + 2 = 8 prompts."""

    @tasks.task("toy", metric="logit_difference")
    def toy(vocabulary: Vocabulary) -> Iterator[Family]:
        """The sky is blue."""
        del vocabulary
        yield Family(
            "pair", [Slot("a b", ["x", "y", "z"])], lambda words, _: Filled(f"{words['a']} {words['b']}", (" c",))
        )
        yield Family("one", [Slot("a", ["u", "v"])], lambda words, _: Filled(words["a"], (" c",)))

    return toy


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
            cut = continuations(prompt.answers + prompt.wrong_answers, tokenizer)
            assert all(len(one.ids) == 1 and one.ids[0] != tokenizer.unk_token_id for one in cut)

    def test_the_answer_is_the_token_that_goes_on_with_the_text(self, name: str, tokenizer: PreTrainedTokenizerBase):
        """GPT-2 has some years as one token, of which the century is no beginning."""
        joined = 0
        for prompt in tasks.draw(name, tokenizer, 100, seed=0):
            whole = [token_ids(tokenizer, prompt.text + answer) for answer in prompt.answers]
            begun, ids = token_ids(tokenizer, prompt.text), continuations(prompt.answers, tokenizer)
            joined += any(text == [*begun, *answer.ids] for text, answer in zip(whole, ids, strict=True))
        assert joined >= (90 if name == "greater_than" else 100)

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


def start_year(text: str) -> str:
    [start] = [word.strip(",") for word in text.split() if word.strip(",").isdigit() and len(word.strip(",")) == 4]
    return start


class TestGreaterThan:
    def test_right_ends_make_a_later_year_and_wrong_ones_do_not(self, tokenizer: PreTrainedTokenizerBase):
        for prompt in tasks.draw("greater_than", tokenizer, 300, seed=0):
            start, begun = start_year(prompt.text), prompt.text.split()[-1]
            assert start.startswith(begun)
            assert prompt.counterfactual == prompt.text.replace(start, f"{start[:2]}01")
            rest = 4 - len(begun) - len(prompt.answers[0])
            assert all(begun + end + "0" * rest > start for end in prompt.answers)
            assert all(begun + end + "9" * rest <= start for end in prompt.wrong_answers)

    def test_every_end_is_right_or_wrong_but_the_digit_that_decides_nothing(self):
        for name, ends, neutral in (("reference", 100, 0), ("qwen", 10, 1), ("llama3", 10, 0), ("llama2", 10, 1)):
            tokenizer = build_tokenizer(256) if name == "reference" else field_tokenizer(name)
            for prompt in tasks.draw("greater_than", tokenizer, 50, seed=0):
                named = {*prompt.answers, *prompt.wrong_answers}
                assert len(named) == len(prompt.answers) + len(prompt.wrong_answers) == ends - neutral

    def test_a_tokenizer_that_spells_otherwise_is_refused_by_name(self):
        """Whole numbers as one token each."""
        cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
        nouns = [f"\u0120{noun}" for noun in datasets.table("greater_than")["nouns"]]
        years = [f"\u0120{year}" for year in range(1000, 2000)]
        pieces = [*cut.alphabet(), *nouns, *years]
        whole = Tokenizer(models.Unigram([(piece, -1.0) for piece in dict.fromkeys(pieces)]))
        whole.pre_tokenizer, whole.decoder = cut, decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, name_or_path="whole-numbers")
        with pytest.raises(BadInput, match=r"\(whole-numbers\) cuts 1732 into 1732\. Choose another task"):
            tasks.draw("greater_than", tokenizer, 1, seed=0)


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
        with pytest.raises(BadInput, match=r"(?s)'ioj'; did you mean ioi.*docstring, greater_than, induction, ioi"):
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
        with pytest.raises(BadInput, match=r"needs at least|needs a tokenizer"):
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
