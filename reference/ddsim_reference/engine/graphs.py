"""CUDA graphs: what the engine launches, captured when it is first needed and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class Graphs:
    """Graphs by key, in one memory pool.

    Parameters
    ----------
    on : bool
        Capture and replay; otherwise everything is launched anew.
    """

    def __init__(self, on: bool) -> None:
        self.on = on
        self.pool: tuple[int, int] | None = None
        self.captured: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def prepare(self, key: Hashable, body: Callable[[], None], state: Sequence[Tensor] = ()) -> None:
        """Capture a graph unless it exists. ``body`` runs once to warm up; then ``state`` is made what it was."""
        if not self.on or key in self.captured:
            return
        before = [x.clone() for x in state]
        self.captured[key] = self.capture(body)
        for x, old in zip(state, before, strict=True):
            x.copy_(old)

    def run(self, key: Hashable, body: Callable[[], None]) -> None:
        """Do what ``body`` launches; with graphs, by replaying the one that was prepared."""
        if self.on:
            self.captured[key].replay()
        else:
            with torch.inference_mode():
                body()

    def capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of its own, for whoever asks, after a run of ``body`` to warm up."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(side):
                body()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                body()
        return graph
