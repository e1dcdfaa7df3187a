"""What one forward pass takes: trees packed into a staging block of fixed size, uploaded in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddsim.errors import DdsimError
from ddsim_reference.engine.attention import TreeMetadata, keys_of_paths, tile_count, tokens_per_tile

BUCKETS = (1, 4, 8, 12, 16, 24, 28, 48, 64, 120, 128, 240, 256, 384, 512, 640, 768, 896, 1024)
"""Token counts for which a graph is captured; a forward pass costs that of the next larger bucket.

As `ddsim.cost.buckets.choose_buckets` chose them from 47 sizes measured at Qwen3-8B's cost on an H100 (``ddsim fit --choose-buckets 19``): a
pass of 96 or 160 tokens takes longer than one of 128 or 256, so those before, which had both, lost 0.9 % of a round on average, these 0.1 %.
"""
MOST_BUCKET = 1 << 16


@dataclass(frozen=True)
class TokenTree:
    """The tokens that one request sends to the target: its root and a draft tree, best first.

    Attributes
    ----------
    tokens, parents, depths : int32 ndarray [m]
        The root comes first, with parent -1 and depth 0; parents come before their children.
    mask : uint32 ndarray [m, ceil(m / 32)]
        Bit t of row j: token j sees token t.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    depths: NDArray[np.int32]
    mask: NDArray[np.uint32]

    @staticmethod
    def chain(tokens: Sequence[int] | NDArray[np.int32]) -> TokenTree:
        """Tokens in a row, each the next one's parent."""
        m = len(tokens)
        index = np.arange(m, dtype=np.int32)
        return TokenTree(np.asarray(tokens, np.int32), index - 1, index, causal_mask(m))


def pack_mask(seen: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Mask words uint32 [m, ceil(m / 32)] of a bool matrix [m, m]."""
    m = len(seen)
    bits = np.zeros((m, 32 * -(-m // 32)), np.uint8)
    bits[:, :m] = seen
    words: NDArray[np.uint32] = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    return words


@lru_cache(maxsize=16)
def causal_mask(m: int) -> NDArray[np.uint32]:
    """Mask words of a chain of m tokens, read-only: kept, since a prompt's chunks are chains of one length."""
    mask = pack_mask(np.tri(m, dtype=np.bool_))
    mask.flags.writeable = False
    return mask


def check_buckets(values: Sequence[int]) -> tuple[int, ...]:
    """Token counts for graphs, ascending and each once.

    Raises
    ------
    DdsimError
        There are none, or one is below 1 or beyond any pass.
    """
    sizes = tuple(sorted(set(values)))
    if not sizes or sizes[0] < 1 or sizes[-1] > MOST_BUCKET:
        raise DdsimError(f"buckets {', '.join(map(str, sizes)) or 'none'}: give token counts from 1 to {MOST_BUCKET:,}")
    return sizes


class Bucket:
    """Buffers of a forward pass over at most ``tokens`` tokens: one staging block, uploaded in one copy, and views of it."""

    def __init__(self, tokens: int, batch: int, group: int, device: torch.device) -> None:
        self.tokens = tokens
        self.per_tile = tokens_per_tile(tokens, batch, group)
        tiles = tile_count(tokens, batch, self.per_tile)
        shapes: dict[str, tuple[int, ...]] = {
            "token": (tokens,),
            "request": (tokens,),
            "index": (tokens,),
            "depth": (tokens,),
            "parent": (tokens,),
            "tiles": (tiles, 3),
            "start": (batch,),
            "size": (batch,),
        }
        places, total = {}, 0
        for (
            name,
            shape,
        ) in shapes.items():  # each starts at a multiple of 16 bytes, so that one compiled kernel serves all
            places[name] = total
            total += -(-int(np.prod(shape)) // 4) * 4
        self.staging = torch.zeros(total, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.uploaded = self.staging if device.type == "cpu" else torch.zeros(total, dtype=torch.int32, device=device)
        flat = self.staging.numpy()
        self.host: dict[str, NDArray[np.int32]] = {}
        self.on: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            own = slice(places[name], places[name] + int(np.prod(shape)))
            self.host[name] = flat[own].reshape(shape)
            self.on[name] = self.uploaded[own].view(shape)
        self.fields = tuple(self.host[name] for name in shapes)  # as the decode loop's packing takes them

    def pack(self, trees: Sequence[TokenTree | None]) -> None:
        """Fill the staging block; None is a request that takes no part."""
        host = self.host
        for name in ("token", "request", "depth", "tiles", "start", "size"):
            host[name][...] = 0
        host["index"][...] = -1  # padding keeps no keys
        host["parent"][...] = -1
        at = tile = 0
        for b, tree in enumerate(trees):
            if tree is None:
                continue
            m = len(tree.tokens)
            own = slice(at, at + m)
            host["token"][own] = tree.tokens
            host["request"][own] = b
            host["index"][own] = np.arange(m)
            host["depth"][own] = tree.depths
            host["parent"][own] = tree.parents
            host["start"][b], host["size"][b] = at, m
            firsts = np.arange(0, m, self.per_tile)
            rows = host["tiles"][tile : tile + len(firsts)]
            rows[:, 0], rows[:, 1] = b, at + firsts
            rows[:, 2] = np.minimum(self.per_tile, m - firsts)
            tile += len(firsts)
            at += m

    def upload(self) -> None:
        """Start the copy of the staging block; leave the block alone until it has arrived."""
        if self.uploaded is not self.staging:
            self.uploaded.copy_(self.staging, non_blocking=True)

    def metadata(self, context: Tensor, steps: int) -> TreeMetadata:
        """The staged trees, with positions worked out on the device from ``context`` int32 [batch].

        ``steps`` is the longest path of a tree, its root included; chains may be longer.
        """
        on = self.on
        seen, near, position, slot = keys_of_paths(
            on["request"], on["index"], on["depth"], on["parent"], on["start"], context, steps
        )
        return TreeMetadata(
            request=on["request"],
            position=position,
            slot=slot,
            seen=seen,
            near=near,
            tiles=on["tiles"],
            tokens_per_tile=self.per_tile,
        )
