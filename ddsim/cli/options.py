"""Options that commands with a model share, and how they reach the reference decoder."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ddsim.cli.app import _complete
from ddsim.cli.console import on_terminal
from ddsim.errors import DdsimError


class ByOption(TyperCommand):
    """A command whose model is an option; a model in its place is refused with a line that says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        stray = self.make_parser(ctx).parse_args(list(args))[1]
        if stray:
            raise DdsimError(f"unexpected {stray[0]!r}: name the model with --target, as in --target {stray[0]}")
        return super().parse_args(ctx, args)


def reference(module: str) -> Any:
    """A module of the reference decoder, or one line that says how to install it."""
    from importlib import import_module

    if not on_terminal():
        os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' own progress bars
    try:
        return import_module(f"ddsim_reference.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ddsim_reference."):
            raise
        raise DdsimError(
            f"this command needs the reference decoder ({error.name} isn't installed): "
            "in a checkout of ddsim run pip install -c constraints.txt '.[reference]' ./reference"
        ) from None


TargetOption = Annotated[
    str, typer.Option(metavar="MODEL", help="Checkpoint folder, hub name, .gguf file, or smollm2-135m.")
]


DrafterOption = Annotated[str, typer.Option(metavar="DRAFTER", help="DFlash drafter: checkpoint folder or hub name.")]


PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="humaneval, chat, mathematics, summarising, all; a file (JSONL or Parquet with prompt or messages; .txt, a prompt a line), a "
        "folder of such; or org/name:split of a data set on the Hugging Face hub (repeatable).",
        autocompletion=_complete("humaneval", "chat", "mathematics", "summarising", "all"),
    ),
]


DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")]


DTYPES = ("float32", "bfloat16")


DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="float32 or bfloat16.", autocompletion=_complete(*DTYPES))
]


OptionalDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="float32 or bfloat16 (default: bfloat16 on a GPU, float32 elsewhere).",
        autocompletion=_complete(*DTYPES),
    ),
]


TokensOption = Annotated[int, typer.Option("--max-new-tokens", min=2, help="Longest answer, in tokens.")]


HeadOption = Annotated[
    bool, typer.Option("--head/--no-head", help="Use the head that knows the token before, if the drafter has one.")
]


def buckets_of(given: str | None) -> dict[str, list[int]]:
    """What ``--buckets`` says, as an argument; nothing if it wasn't given."""
    if given is None:
        return {}
    sizes = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) < 8 for part in sizes):
        raise DdsimError(f"--buckets {given:.60}: must be token counts with commas between them, as in 1,16,64,256")
    return {"buckets": [int(part) for part in sizes]}


BucketsOption = Annotated[
    str | None,
    typer.Option("--buckets", metavar="N,N,…", help="Token counts that passes are padded to, a CUDA graph each."),
]


FastOption = Annotated[bool, typer.Option("--fast", help="Faster products, whose rounding may change a text.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each workload.")]


WIDTHS = ("qwen3-4b", "qwen3-8b")


WidenOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE",
        help="Run the target at the cost of a larger one: qwen3-4b or qwen3-8b.",
        autocompletion=_complete(*WIDTHS),
    ),
]
