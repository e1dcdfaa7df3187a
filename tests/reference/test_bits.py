"""A token's sums are taken in one order, whoever shares its pass: in Triton's interpreter, and in what is compiled for a Hopper GPU.

The interpreter shows which keys and which columns are added to which, the compiled kernels in what order a warp's threads add up.
Between the two, a kernel that breaks the order is found without a GPU.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsim_reference.engine import attention, kernels, products
from ddsim_reference.engine.attention import TreeMetadata
from ddsim_reference.engine.buckets import Bucket, TokenTree
from ddsim_reference.engine.engine import Engine
from ddsim_reference.engine.heads import PRODUCTS
from ddsim_reference.engine.products import Tile
from ddsim_reference.model import forward, heads
from tests.reference import tiny
from tests.reference.interpreter import INTERPRETED, interpreted, run_in_the_interpreter
from tests.reference.test_kernels import normal, random_tree

compiled = pytest.mark.skipif(
    INTERPRETED or importlib.util.find_spec("triton") is None,
    reason="compiles with Triton, which the interpreter replaces",
)


@pytest.mark.skipif(INTERPRETED, reason="is the subprocess")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(which: str) -> None:
    run_in_the_interpreter(__file__, which)


@pytest.fixture
def exact_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's products by steps of 16 columns, as tensor cores take them; within a step NumPy's order doesn't show."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        total = d.data.copy()
        for k in range(0, a.data.shape[1], 16):
            step = a.data[:, k : k + 16].astype(np.float64) @ b.data[k : k + 16].astype(np.float64)
            total = (total + step).astype(d.data.dtype)
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@interpreted
@pytest.mark.usefixtures("exact_dots")
@pytest.mark.parametrize("gated", [False, True])
def test_a_token_has_the_same_product_in_all_company(gated: bool) -> None:
    """Few tokens and many, tiles of every kind, K divided into parts of unequal length."""
    k, rows = 800, 24
    x, weight = normal(40, k), normal(rows, k, seed=1) * k**-0.5
    assert products.parts_of(rows, k) == 3
    wanted = products.added(products.product(x[3:4], weight, gated=gated), x.dtype)
    tiles = (
        None, Tile(16, 32, 16, 2), Tile(32, 128, 32, 2), Tile(16, 64, 64, 2, whole=True), Tile(32, 64, 32, 2, 4, True, True),
        Tile(32, 64, 32, 2, 4, True, True, True), Tile(32, 128, 16, 2, copied=True),
    )  # fmt: skip
    for tokens, at in ((17, 3), (40, 39)):
        company = x[:tokens].clone()
        company[at] = x[3]
        for tile in tiles:
            found = products.added(products.product(company, weight, gated=gated, tile=tile), x.dtype)
            assert torch.equal(found[at], wanted[0]), (tokens, tile)
    whole = products.product(x, weight, gated=gated, out=torch.empty(40, rows // 2 if gated else rows))
    for tile in (
        Tile(16, 128, 32, 2, tokens_first=True),
        Tile(32, 64, 16, 2, tokens_first=True, copied=True, turns=True),
    ):
        one = products.product(x, weight, gated=gated, out=torch.empty_like(whole), tile=tile)
        assert torch.equal(one, whole), tile
    if not gated:
        parts = products.product(x, weight, tile=tiles[1])
        assert not torch.equal(parts[0] + parts[1] + parts[2], parts[2] + parts[1] + parts[0])  # an order shows


@interpreted
@pytest.mark.usefixtures("exact_dots")
@pytest.mark.parametrize(("context", "part", "group"), [(3, 128, 512), (150, 32, 64)])
def test_a_token_has_the_same_attention_in_all_company(
    context: int, part: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone after its path was committed; in a tree among others; in the chain of a prompt; in a batch; by parts and by groups."""
    monkeypatch.setattr(attention, "PART", part)
    monkeypatch.setattr(attention, "GROUP", group)
    heads, kv_heads, dim, steps = 3, 1, 16, 16
    rng = np.random.default_rng(context)
    tree = random_tree(24, 15, 100, rng)
    deepest = int(tree.depths.argmax())
    path = [deepest]
    while path[0] != 0:
        path.insert(0, int(tree.parents[path[0]]))
    assert len(path) >= 3 and path != list(range(len(path)))
    end = context + len(path)
    keys, values = normal(2, 1, kv_heads, end, dim)
    queries = normal(len(path), heads * dim, seed=1)

    def attend(
        trees: list[TokenTree | None], contexts: list[int], where: list[list[int]], first: int = 0
    ) -> torch.Tensor:
        """Attention of the last request's tokens at the places ``where``, which are the path's from ``first`` on."""
        batch, b = len(trees), len(trees) - 1
        bucket = Bucket(
            sum(len(t.tokens) for t in trees if t is not None) + 2, batch, heads // kv_heads, torch.device("cpu")
        )
        bucket.pack(trees)
        placed = bucket.metadata(torch.tensor(contexts, dtype=torch.int32), steps)
        cache = [normal(batch, kv_heads, end + 64, dim, seed=5 + i) for i in range(2)]
        start = int(bucket.on["start"][b])
        qkv = normal(bucket.tokens, heads * dim, seed=9)
        for held, whole in zip(cache, (keys, values), strict=True):
            held[b, :, : contexts[b]] = whole[0, :, : contexts[b]]
            for step, place in enumerate(where[0]):
                held[b, :, contexts[b] + place] = whole[0, :, context + first + step]
        for step, place in enumerate(where[0]):
            if context + first + step >= context:
                qkv[start + place] = queries[first + step]
        out = attention.tree_attention(qkv, heads, *cache, placed)
        return out[[start + place for place in where[0]]]

    alone = torch.cat([attend([TokenTree.chain([1])], [context + i], [[0]], i) for i in range(len(path))])
    assert torch.equal(attend([tree], [context], [path]), alone)
    neighbours = [TokenTree.chain([1, 2, 3]), None, tree]
    assert torch.equal(attend(neighbours, [7, 9, context], [path]), alone)
    whole = attend([TokenTree.chain([1] * len(path))], [context], [list(range(len(path)))])
    assert torch.equal(whole, alone)
    monkeypatch.setattr(attention, "BUSY", 0)
    assert torch.equal(attend(neighbours, [7, 9, context], [path]), alone)


@interpreted
@pytest.mark.usefixtures("exact_dots")
@pytest.mark.parametrize(
    "form", ["gated", "selector", *(pytest.param(form, marks=pytest.mark.slow) for form in ("static", "markov"))]
)
def test_a_block_has_the_same_lattice_in_all_company(form: str) -> None:
    """Alone and among others, and nearly what PyTorch makes of it."""
    config, weights = tiny.target()
    shape, _ = tiny.drafter(config)
    head, head_weights = tiny.head(shape, form, **({"reach": 1} if form == "gated" else {}))
    table = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    hidden, roots = normal(3, shape.horizon, shape.hidden_size), torch.tensor([1, 7, 30])

    def drafted(own: slice, products: heads.Products) -> tuple[torch.Tensor, ...]:
        found = heads.cut(hidden[own], forward.head_logits(hidden, table[1])[own], 6, reach=head.reach)
        return heads.lattice_of(head, head_weights, found, *table, roots[own], products)

    together, wanted = drafted(slice(3), PRODUCTS), drafted(slice(3), heads.TORCH)
    for found, whole, plain in zip(drafted(slice(1, 2), PRODUCTS), together, wanted, strict=True):
        assert torch.equal(found[0], whole[1])
        torch.testing.assert_close(whole, plain, atol=1e-5, rtol=1e-5)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("exact_dots")
def test_an_engine_gives_the_same_logits_in_all_company() -> None:
    """All kernels of a pass together, for a path token by token, in a tree, and in a batch; and the drafts after it."""
    config, weights = tiny.target("qwen3", num_layers=1)
    shape, draft_weights = tiny.drafter(config, target_layer_ids=(0,), num_layers=1)
    rng = np.random.default_rng(2)
    tree = random_tree(20, 5, 61, rng)
    path = [int(tree.depths.argmax())]
    while path[0] != 0:
        path.insert(0, int(tree.parents[path[0]]))
    prompt = [5, 9, 2, 2]

    def made(batch: int) -> Engine:
        return Engine(
            config, tiny.copies(weights), shape, tiny.copies(draft_weights), max_context=40, max_tokens=64, batch=batch
        )

    engine = made(1)
    engine.prefill(0, prompt)
    engine.set_root(0, int(tree.tokens[0]))
    engine.draft()
    drafted = [x[0].copy() for x in engine.drafted()]
    alone = []
    for step, place in enumerate(path):
        engine.set_context(len(prompt) + step)
        alone.append(engine.verify(engine.stage([TokenTree.chain(tree.tokens[place : place + 1])])).clone())
    wanted = torch.cat(alone)
    engine.set_context(len(prompt))
    assert torch.equal(engine.verify(engine.stage([tree]))[path], wanted)
    batch = made(3)
    for b, text in enumerate(([1, 2], [3] * 9, prompt)):
        batch.prefill(b, text)
    batch.set_roots([1, 1, int(tree.tokens[0])])
    batch.draft()
    assert all(np.array_equal(x[2], y) for x, y in zip(batch.drafted(), drafted, strict=True))
    logits = batch.verify(batch.stage([TokenTree.chain([4, 5]), TokenTree.chain([6]), tree]))
    assert torch.equal(logits[[3 + place for place in path]], wanted)


# What the compiler makes of the kernels.


class Hopper:
    """Stands for a GPU of compute capability 9.0, as far as a compiler asks."""

    def get_current_device(self) -> int:
        return 99  # none that could be asked to run what is compiled here

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compile_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Calls of kernels compile them, as far as layouts and instructions are settled, and run nothing; the list of what was compiled."""
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    made: list[Any] = []
    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        made.append(run(self, *args, grid=grid, warmup=True, **options))
        return made[-1]

    def skip(self: Any, source: Any, metadata: dict[str, Any], *_: Any) -> str:
        metadata |= {"name": "", "shared": 0}
        return ""

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    for stage in ("make_llir", "make_ptx"):
        monkeypatch.setattr(CUDABackend, stage, skip)
    monkeypatch.setattr(CUDABackend, "make_cubin", lambda *_: b"")
    monkeypatch.setattr(JITFunction, "run", record)
    for module in (kernels, attention):
        monkeypatch.setattr(module, "use_triton", lambda x: True)
        monkeypatch.setattr(module, "early_launch", lambda x: {"PDL": True, "launch_pdl": True})
    monkeypatch.setattr(driver, "_active", Hopper())
    return made


def orders(kernel: Any) -> set[str]:
    """How a compiled kernel adds up: the layouts in which it reduces, and the instructions of its products."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.(.*)$", text, re.MULTILINE))
    found = set()
    for shape, layout in re.findall(r'"tt\.reduce"(?:.*\n)*?.*\}\) : \(tensor<([^,>]*), (#\w+)>\)', text):
        if not shape.endswith("i32"):  # integers add up to the same in any order
            found.add(f"reduce {shape} {layouts[layout]}")
    for shape, layout in re.findall(r"(?:tt\.dot|warp_group_dot) .*-> tensor<([^,>]*), (#\w+)>", text):
        found.add(f"dot {shape} {layouts[layout]}")
    return found


def a_row(found: set[str]) -> set[str]:
    """The same without what says how many rows a program has, and how its warps share them."""
    return {
        re.sub(r"(reduce|dot) \d+x", r"\1 ", re.sub(r"warpsPerCTA = \[\d+, 1\]", "warps on rows", line))
        for line in found
    }


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@compiled
def test_norms_and_rotations_add_up_alike(compile_only: list[Any]) -> None:
    """Whether a product comes whole or in parts, and whether its tokens' features are copied out."""
    for delta, auxiliary in (
        (None, None), (empty(64, 4096), None), (empty(4, 64, 4096, dtype=torch.float32), empty(64, 20480)[:, :4096]),
    ):  # fmt: skip
        kernels.add_rms_norm(empty(64, 4096), delta, empty(4096), 1e-6, auxiliary=auxiliary)
    norms = [orders(kernel) for kernel in compile_only]
    assert len(norms[0]) == 1 and norms == [norms[0]] * 3
    compile_only.clear()
    table, index = empty(999, 64, dtype=torch.float32), empty(64, dtype=torch.int32)
    cache = empty(1, 8, 999, 128), empty(1, 8, 999, 128)
    for qkv in (empty(64, 6144), empty(4, 64, 6144, dtype=torch.float32)):
        kernels.rope_write(qkv, empty(128), empty(128), 1e-6, table, table, index, index, index, *cache)
    rotations = [orders(kernel) for kernel in compile_only]
    assert len(rotations[0]) == 2 and rotations[0] == rotations[1]


@compiled
def test_attention_adds_up_alike(compile_only: list[Any]) -> None:
    """One token and many, a part a program and several: the same instructions, the same reductions of a row."""
    for tokens, per_tile, together in ((1, 1, False), (512, 32, True)):
        index, tiles = empty(tokens, dtype=torch.int32), empty(-(-tokens // per_tile), 3, dtype=torch.int32)
        placed = TreeMetadata(index, index, index, index, empty(tokens, 32, dtype=torch.int32), tiles, per_tile)
        cache = empty(1, 8, 999, 128), empty(1, 8, 999, 128)
        attention.tree_attention(empty(tokens, 6144), 32, *cache, placed, together=together)
    found = [a_row(orders(kernel)) for kernel in compile_only]
    assert all(len(lines) >= 3 for lines in found)
    assert found[0] == found[2] and found[1] == found[3]
    assert all("versionMajor = 3" in line for line in found[0])


@compiled
def test_products_use_one_instruction(compile_only: list[Any]) -> None:
    """In all tiles the tensor cores take 16 columns at a time, by the same kind of instruction."""
    for tokens, tile in (
        *((tokens, None) for tokens in (1, 32, 64, 128, 256, 512)),
        (512, Tile(128, 64, 128, 3, 8, True, False)),
        (512, Tile(128, 64, 128, 4, 8, True, True)),
    ):
        products.product(empty(tokens, 4096), empty(4096, 4096), tile=tile)
    for kernel in compile_only:
        (line,) = orders(kernel)
        assert "versionMajor = 3" in line and re.search(r"instrShape = \[16, \d+, 16\]", line), line
