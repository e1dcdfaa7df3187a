"""What callers hand over: the right trace or tree, or one clear line; never somebody else's error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.errors import DdsimError
from ddsim.policy.choose import optimal_budget
from ddsim.trace.schema import TraceBlock
from ddsim.trace.trace import Trace
from ddsim.tree.forests import forest_gains
from ddsim.tree.rows import kept_pairs
from ddsim.tree.trees import draft_chain, draft_tree, tree_gains

T, L, K, V = 4, 2, 3, 20


def arrays(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    logits = rng.normal(size=(T, L, V))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logprobs, -1)[..., :K]
    return rng.integers(0, V, T), ids, np.take_along_axis(logprobs, ids, -1).astype(np.float16)


def only_block(*given: Any, **more: Any) -> TraceBlock:
    (block,) = Trace.from_arrays(*given, max_budget=8, **more).blocks()
    return block


@pytest.fixture
def sound() -> tuple[Any, Any, Any]:
    return arrays(np.random.default_rng(0))


KINDS: dict[str, Any] = {
    "lists": lambda a: a.tolist(),
    "lists of arrays": lambda a: list(a),
    "float64 and int64": lambda a: a.astype(np.float64 if a.dtype.kind == "f" else np.int64),
    "float32 and uint16": lambda a: a.astype(np.float32 if a.dtype.kind == "f" else np.uint16),
    "ids as floats": lambda a: a.astype(np.float32),
    "fortran order": np.asfortranarray,
    "one position fewer": lambda a: a[:-1] if a.ndim == 3 else a,
    "read-only": lambda a: (a.setflags(write=False), a)[1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_arrays_make_the_same_trace(sound: tuple[Any, Any, Any], kind: str) -> None:
    expected = only_block(*sound)
    for arguments, count in ((tuple(map(KINDS[kind], sound)), 1), (tuple([KINDS[kind](a)] * 2 for a in sound), 2)):
        block = only_block(*arguments)
        for field in ("tokens", "token_ids", "logprobs"):
            assert np.array_equal(getattr(block, field), np.tile(getattr(expected, field), count))
        assert len(block.starts) == count + 1


def test_a_batch_of_arrays_is_several_sequences(sound: tuple[Any, Any, Any]) -> None:
    block = only_block(*(np.stack([a, a, a]) for a in sound), context0=[1, 2, 3], temperature=np.array([0, 0.5, 1]))
    assert len(block.starts) == 4 and block.context.tolist() == [1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6]


def test_tensors(sound: tuple[Any, Any, Any]) -> None:
    torch = pytest.importorskip("torch")
    tokens, ids, half = sound
    x, i, v = torch.tensor(tokens), torch.tensor(ids), torch.tensor(half)
    expected = only_block(*sound)
    for arguments in ((x, i, v), (x, i, v.float().requires_grad_()), (x.int(), list(i), list(v)), ([x], [i], [v])):
        assert np.array_equal(only_block(*arguments).logprobs, expected.logprobs)
    rough = v.bfloat16()
    block = only_block(x, i, rough)
    assert np.array_equal(block.logprobs, rough[:-1].float().numpy().ravel())
    assert len(draft_tree(v[0], 4)) == 5 and np.array_equal(tree_gains(v[0], 4), tree_gains(half[0], 4))
    assert len(draft_chain(v[0].bfloat16())) == L + 1
    assert kept_pairs(v, 2).shape == (T, L)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_rows_that_rounding_made_sum_above_1_are_scaled(kind: str) -> None:
    torch = pytest.importorskip("torch")
    exact = torch.log_softmax(torch.randn(200, L, 50, generator=torch.manual_seed(0)) * 0.3, -1)
    values, ids = exact.sort(-1, descending=True)
    rough = values.to(getattr(torch, kind))
    sums = rough[:-1].double().exp().sum(-1)
    assert (sums > 1.0001).any() and (sums < 1).any()
    block = only_block(torch.zeros(200, dtype=int), ids, rough, vocab_size=50)
    given, found = rough[:-1].float().numpy().reshape(-1, 50), block.logprobs.reshape(-1, 50)
    over = (sums > 1.0001).numpy().ravel()
    assert np.array_equal(found[~over], given[~over])
    assert np.allclose(np.exp(found[over]).sum(-1), 1, atol=1e-5)
    with pytest.raises(DdsimError, match=r"sequence 0: position 0, depth 1: probabilities sum to 1.0"):
        Trace.from_arrays([0, 0], ids[:2], rough[:2].float() + 0.01 * (rough[:2] < -0.1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": [1, 2.5, 3, 4]}, "sequence 0: tokens: position 1: 2.5 is no whole number"),
        ({"tokens": [1, np.nan, 3, 4]}, "sequence 0: tokens: position 1: nan is no whole number"),
        ({"tokens": [1, -2, 3, 4]}, "sequence 0: token -2 at position 1 lies outside the vocabulary"),
        ({"tokens": [1, 2**40, 3, 4]}, "sequence 0: tokens: position 1: 1099511627776 is no whole number of 32 bits"),
        ({"tokens": [1, 10**30, 3, 4]}, "sequence 0: tokens: must be numbers, not of type object"),
        ({"tokens": ["a", "b"]}, "sequence 0: tokens: must be numbers, not of type <U1"),
        ({"tokens": None}, "sequence 0: tokens: must be numbers, not of type object"),
        ({"tokens": 5}, "sequence 0: tokens must be a row of at least one"),
        ({"tokens": []}, "sequence 0: tokens must be a row of at least one"),
        ({"tokens": [[1, 2, 3, 4]]}, "1 sequences of tokens, 4 of token_ids and 4 of logprobs: must be equally many"),
        ({"tokens": [True, False, True, True]}, "tokens: must be numbers, not of type bool"),
        ({"tokens": [1, 2]}, r"sequence 0: 2 tokens, token_ids of shape \(4, 2, 3\)"),
        ({"ids": lambda a: a[..., :2]}, r"token_ids of shape \(4, 2, 2\), logprobs of shape \(4, 2, 3\)"),
        ({"ids": lambda a: a + 0.5}, r"token_ids: position 0, depth 1, candidate 0: [\d.]+ is no whole number"),
        ({"ids": lambda a: -a - 1}, "sequence 0: position 0, depth 1: token -.* lies outside the vocabulary"),
        ({"ids": lambda a: a * 0}, "sequence 0: position 0, depth 1: token 0 twice"),
        ({"ids": lambda a: [a[0], a[1][:1]]}, "token_ids: no array of numbers"),
        ({"ids": 7}, r"token_ids of shape \(\)"),
        (
            {"values": lambda a: a * np.nan},
            "sequence 0: position 0, depth 1: log-probability nan of candidate 0 is not a",
        ),
        ({"values": lambda a: -a}, "sequence 0: position 0, depth 1: log-probability .* is positive"),
        ({"values": lambda a: a[..., ::-1]}, "sequence 0: position 0, depth 1: .*descending order"),
        ({"values": lambda a: a * 0}, "sequence 0: position 0, depth 1: probabilities sum to 3, above 1"),
        ({"values": lambda a: a.astype(complex)}, "logprobs: must be numbers, not of type complex128"),
        ({"values": lambda a: a.astype(object)}, "logprobs: must be numbers, not of type object"),
        ({"context0": -5}, "sequence 0: context0 -5 must be a whole number of 0 or more"),
        ({"context0": 2.5}, "sequence 0: context0 2.5 must be"),
        ({"context0": "many"}, 'sequence 0: context0 "many" must be'),
        ({"context0": [1, 2]}, "context0: 2 values for 1 sequences"),
        ({"context0": 2**31}, "a prompt of 2147483648 tokens"),
        ({"temperature": "hot"}, 'sequence 0: temperature "hot" must be a number'),
        ({"temperature": np.nan}, "sequence 0: temperature NaN must be"),
        ({"temperature": -1}, "sequence 0: temperature -1 must be"),
        ({"workload": 3}, "sequence 0: workload 3 must be text"),
        ({"workload": "a\nb"}, "sequence 0: workload .* control characters"),
        ({"prompt_id": "\ud800"}, "sequence 0: prompt_id .* control characters"),
        ({"max_budget": 2.5}, "max_budget 2.5: must be a whole number from 1 to 65,535"),
        ({"max_budget": 0}, "max_budget 0: must be"),
        ({"vocab_size": 3}, "lies outside the vocabulary of 3"),
        ({"vocab_size": "all"}, 'vocab_size "all": must be a whole number'),
        ({"provenance": {"a": object()}}, "provenance: must be a mapping of JSON values"),
        ({"provenance": 5}, "provenance: must be a mapping of JSON values"),
    ],
)
def test_from_arrays_refuses(sound: tuple[Any, Any, Any], change: dict[str, Any], reason: str) -> None:
    named = dict(zip(("tokens", "ids", "values"), sound, strict=True))
    for key in set(change) & set(named):
        named[key] = change[key](named[key]) if callable(change[key]) else change[key]
    others = {key: value for key, value in change.items() if key not in named}
    with pytest.raises(DdsimError, match=reason) as caught:
        Trace.from_arrays(named["tokens"], named["ids"], named["values"], **others)
    assert "\n" not in str(caught.value)


def test_a_horizon_that_a_byte_cannot_count_is_refused() -> None:
    with pytest.raises(DdsimError, match="horizon 256: must be a whole number from 1 to 255"):
        Trace.from_arrays([1, 2], np.zeros((2, 256, 1), int), np.zeros((2, 256, 1)))


odd_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.binary(max_size=2),
    st.just(object()), st.complex_numbers(),
)  # fmt: skip
odd = st.one_of(
    odd_scalars,
    st.recursive(odd_scalars, lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner)), max_leaves=12),
    st.sampled_from([np.float16, np.int64, np.uint8, np.bool_, np.float64, "datetime64[s]", "U3"]).flatmap(
        lambda dtype: st.lists(st.integers(0, 3), max_size=4).map(lambda shape: np.zeros(shape, dtype))
    ),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_odd_input_is_one_line(data: st.DataObject) -> None:
    """One or two of the arguments are anything at all."""
    sound = arrays(np.random.default_rng(1))
    trace = Trace.from_arrays(*sound, max_budget=8)
    rows = sound[2][0].astype(np.float32)

    def made(*given: Any, **more: Any) -> None:
        made = Trace.from_arrays(*given, **more)
        assert sum(len(block) for block in made.blocks()) == len(made) > 0

    calls: list[tuple[Any, list[Any], dict[str, Any]]] = [
        (made, list(sound), {}),
        (made, list(sound), dict.fromkeys(("workload", "prompt_id"), "a") | {"context0": 1, "temperature": 0.0, "max_budget": 4}),
        (made, [[a, a] for a in sound], {"vocab_size": V, "provenance": {}, "context0": [1, 2]}),
        (draft_tree, [rows, 3], {}),
        (draft_chain, [rows], {}),
        (tree_gains, [rows, 3], {}),
        (forest_gains, [[[0.5, 0.25], [0.75, 0.25]], 3], {}),
        (optimal_budget, [[0.5, 0.25], [1.0, 1.1, 1.2]], {}),
        (optimal_budget, [[0.5, 0.25], [1.0, 1.1, 1.2]], {"rule": "price", "price": 1.0, "context": 5}),
        (trace.select, [], {"workload": "", "temperature": 0.0, "prompts": ["0"]}),
        (trace.subset, [[0]], {}),
    ]  # fmt: skip
    function, given, more = data.draw(st.sampled_from(calls))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(given) + len(more) - 1))
        if place < len(given):
            given[place] = data.draw(odd)
        else:
            more[list(more)[place - len(given)]] = data.draw(odd)
    try:
        function(*given, **more)
    except DdsimError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda t: t.subset([]), "subset: no number given"),
        (lambda t: t.subset([1]), "subset: 1 is no number of a sequence; they go from 0 to 0"),
        (lambda t: t.subset([-1]), "subset: -1 is no number"),
        (lambda t: t.subset(np.array([True])), "is no number of a sequence"),
        (lambda t: t.subset(3), "subset: must be a list"),
        (lambda t: t.subset([[0]]), "is no number"),
        (lambda t: t.select(workload=3), "workload: must be a list"),
        (lambda t: t.select(prompts=[3]), "prompts: must be a name or a list of names"),
        (lambda t: t.select(temperature="hot"), "temperature"),
        (lambda t: t.select(temperature=[0.0]), "temperature"),
        (lambda t: t.save(3), "3: is no path"),
        (lambda t: t.save("a\0b"), "can't be made a folder"),
    ],
)
def test_odd_parts_of_a_trace(sound: tuple[Any, Any, Any], call: Any, reason: str) -> None:
    with pytest.raises(DdsimError, match=reason):
        call(Trace.from_arrays(*sound, max_budget=8))


def test_one_prompt_by_its_name(sound: tuple[Any, Any, Any]) -> None:
    trace = Trace.from_arrays(*([a, a] for a in sound), prompt_id=["ab", "a"], max_budget=8)
    assert [info.prompt_id for info in trace.select(prompts="ab").sequences] == ["ab"]
