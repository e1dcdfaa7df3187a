"""Answers that are given: logs of prompts and answers, as people, datasets and serving engines keep them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim.text import brief
from ddsim_reference.limits import in_child
from ddsim_reference.model.config import ModelConfig
from ddsim_reference.model.rows import (
    Message,
    Row,
    are_ids,
    body,
    message_of,
    name_of,
    objects,
    prompt_of,
    read_rows,
    text_of,
)

ANSWERS = ("answer", "response", "completion", "output")
PER_CHILD = 256
"""Texts that are encoded at a time."""


@dataclass(frozen=True)
class Given:
    """One answer of a log.

    ``prompt`` is token ids, raw text, or the messages before; ``answer`` token ids or text. ``ended``: the answer ended by itself, so
    that an end of text belongs to it where its token ids aren't given. ``where`` names file and row.
    """

    id: str
    workload: str
    temperature: float
    where: str
    prompt: list[int] | str | list[Message]
    answer: list[int] | str
    ended: bool = True

    @property
    def is_encoded(self) -> bool:
        """Whether all of it is token ids."""
        return are_ids(self.prompt) and are_ids(self.answer)


def choose_answers(paths: Sequence[str | Path], limit: int | None = None, temperature: float = 0.0) -> list[Given]:
    """Answers of several logs, the first ``limit`` of each workload; raises as `read_log`, or if one comes twice."""
    if paths and limit is not None and limit < 1:
        raise DdsimError(f"limit {limit}: must be at least 1")
    found: list[Given] = []
    seen: dict[tuple[str, str, float], str] = {}
    count: dict[str, int] = {}
    for path in paths:
        for given in read_log(path, temperature, limit):
            key = given.workload, given.id, given.temperature
            if key in seen:
                raise DdsimError(
                    f'{given.where}: id "{given.id}" is already used in {seen[key]}; make it unique in its workload'
                )
            seen[key] = given.where
            count[given.workload] = count.get(given.workload, 0) + 1
            if limit is None or count[given.workload] <= limit:
                found.append(given)
    return found


def read_log(path: str | Path, temperature: float = 0.0, limit: int | None = None) -> list[Given]:
    """
    Read a log of answers, all of it checked.

    Parameters
    ----------
    path
        A file (JSONL, JSON, Parquet), a folder of such, or a data set of the Hugging Face hub, as `read_rows` takes them; a row of one
        of these forms, optionally with ``id``, ``workload`` and ``temperature``:

        - ``prompt`` (the user's message, messages, or token ids; also ``question`` or ``instruction``) and ``answer``, ``response``,
          ``completion`` or ``output`` (text or token ids);
        - ``messages`` (or ShareGPT's ``conversations``), with the answer or an assistant's message last: every turn of the assistant
          is an answer to what stands before it;
        - vLLM's ``RequestOutput``: ``prompt_token_ids`` or ``prompt``, and ``outputs`` with ``token_ids`` or ``text``;
        - OpenAI's ``choices``, in the row or its ``response``, with the prompt in the row or its ``request``.
    temperature
        At which answers were written that don't tell.
    limit
        Rows of a data set of the hub to fetch, unless they name workloads.

    Returns
    -------
    list of Given
        In file order. Ids are the row's, or its number; several answers of a row are numbered behind a slash.

    Raises
    ------
    DdsimError
        The file can't be read or is empty, or a row has no answer or is of another form. The message names file and row.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "chat.jsonl")
    >>> _ = file.write_text('{"prompt": "Hello!", "answer": "Hi."}\\n')
    >>> [(g.workload, g.id, g.prompt, g.answer) for g in read_log(file)]
    [('chat', '1', [{'role': 'user', 'content': 'Hello!'}], 'Hi.')]
    """
    found = [given for row in read_rows(path, "answers", limit) for given in _given(row, temperature)]
    if not found:
        raise DdsimError(f"{path}: holds no answers; write one JSON object a line")
    return found


def _given(read: Row, temperature: float) -> Iterator[Given]:
    """The answers of a row."""
    where, row = read.where, read.columns
    request, response = body(row.get("request")), body(row.get("response"))
    answers, raw = _answers(where, row, response)
    prompt = _prompt(where, row, request, response, raw)
    heat = row.get("temperature", request.get("temperature", temperature))
    if not isinstance(heat, int | float) or isinstance(heat, bool) or not 0 <= heat < 1e38:
        raise DdsimError(f'{where}: "temperature" is {brief(heat)}, but must be a number of 0 or more')
    name, workload = name_of(where, row, "id", "request_id", "custom_id"), name_of(where, row, "workload")
    about = str(read.number) if name is None else name, workload or read.source or "answers", float(heat), where
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        messages: list[Message] = prompt  # type: ignore[assignment]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers and (not messages or messages[-1]["role"] != "assistant"):
            raise DdsimError(f"{where}: {_lacking()}")
        if 0 in turns:
            raise DdsimError(f"{where}: begins with the assistant's message, which answers nothing")
        texts: list[tuple[Any, Any, bool]] = [(messages[:i], messages[i]["content"], True) for i in turns]
        texts += [(messages, *answer) for answer in answers]
    elif not answers:
        raise DdsimError(f"{where}: {_lacking()}")
    else:
        texts = [(prompt, *answer) for answer in answers]
    for i, (before, answer, ended) in enumerate(texts, 1):
        if not answer:
            raise DdsimError(f"{where}: {f'answer {i}' if len(texts) > 1 else 'the answer'} is empty")
        yield Given(f"{about[0]}/{i}" if len(texts) > 1 else about[0], *about[1:], before, answer, ended)


def _lacking() -> str:
    return f"has no answer; it needs one of {', '.join(ANSWERS)}, vLLM's \"outputs\" or an assistant's message last"


def _answers(where: str, row: dict[str, Any], response: dict[str, Any]) -> tuple[list[tuple[Any, bool]], bool]:
    """Answers, each with whether it ended by itself; and whether a prompt beside them is raw text."""
    if "outputs" in row:
        return [_output(where, "outputs", one, one) for one in objects(where, "outputs", row["outputs"])], True
    holder = row if "choices" in row else response
    if "choices" in holder:
        choices = objects(where, "choices", holder["choices"])
        chat = any(one.get("message") is not None for one in choices)
        return [_output(where, "choices", one, one.get("message") or one) for one in choices], not chat
    for name in ANSWERS:
        if row.get(name) is not None and not (name == "response" and response):
            value = row[name]
            if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
                value = value[0]
            if isinstance(value, dict):
                value = message_of(where, f'"{name}"', value)["content"]
            return [(text_of(where, name, value), True)], False
    return [], False


def _output(where: str, name: str, one: dict[str, Any], message: Any) -> tuple[Any, bool]:
    """An answer out of vLLM's outputs or OpenAI's choices."""
    ended = one.get("finish_reason") != "length"
    if one.get("token_ids") is not None:
        return text_of(where, f"{name}: token_ids", one["token_ids"], ids=True), ended
    if message is one:
        if not isinstance(one.get("text"), str):
            raise DdsimError(f'{where}: "{name}" holds neither token_ids nor text')
        return text_of(where, f"{name}: text", one["text"]), ended
    return message_of(where, f'"{name}"', message)["content"], ended


def _prompt(
    where: str, row: dict[str, Any], request: dict[str, Any], response: dict[str, Any], raw: bool
) -> list[int] | str | list[Message]:
    """What was asked: token ids before messages before text."""
    choices = [one for one in (row.get("choices"), response.get("choices")) if isinstance(one, list) and one]
    for holder in (row, response, *(one[0] for one in choices if isinstance(one[0], dict))):
        if holder.get("prompt_token_ids") is not None:
            ids: list[int] = text_of(where, "prompt_token_ids", holder["prompt_token_ids"], ids=True)
            return ids
    return prompt_of(where, [row, request], raw=raw)


def encode_given(
    tokenizer: Any, texts: Sequence[Given], config: ModelConfig, longest: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """
    Token ids of prompts and answers: as they are where the log has them, otherwise by the target's chat template and tokenizer.

    Parameters
    ----------
    tokenizer
        None if the target has none; token ids must be given then.
    longest
        Cut answers to so many tokens.

    Raises
    ------
    DdsimError
        A token outside the vocabulary, a text too long for the model's context, or one that the template refuses; the message
        names file and row.
    """
    encoded: list[tuple[list[int], list[int]]] = []
    end = getattr(tokenizer, "eos_token_id", None)
    if end not in config.eos_token_ids:
        end = config.eos_token_ids[0] if config.eos_token_ids else None
    told: list[list[Any]]
    for first in range(0, len(texts), PER_CHILD):
        part = texts[first : first + PER_CHILD]
        if all(given.is_encoded for given in part):
            told = [[given.prompt, given.answer] for given in part]
        elif tokenizer is None:
            where = next(given.where for given in part if not given.is_encoded)
            raise DdsimError(f"{where}: is text, but the target has no tokenizer; give token ids of prompt and answer")
        else:
            whose = getattr(tokenizer, "name_or_path", "") or "the target"
            told = in_child(partial(_encode_part, tokenizer, part, end), f"{whose}: its chat template or tokenizer")
        for given, (prompt, answer) in zip(part, told, strict=True):
            if prompt is None:
                raise DdsimError(f"{given.where}: {answer}")
            answer = answer[:longest]
            for name, ids in (("prompt", prompt), ("answer", answer)):
                if not ids:
                    raise DdsimError(f"{given.where}: its {name} has no tokens")
                bad = next((token for token in ids if not 0 <= token < config.vocab_size), None)
                if bad is not None:
                    raise DdsimError(
                        f"{given.where}: token {bad} of its {name} lies outside the target's vocabulary of {config.vocab_size}"
                    )
            if len(prompt) + len(answer) > config.max_position_embeddings:
                raise DdsimError(
                    f"{given.where}: its {len(prompt):,} and {len(answer):,} tokens exceed the {config.max_position_embeddings:,} "
                    "positions that the target was made for; leave it out, or cut answers with --max-new-tokens"
                )
            encoded.append((prompt, answer))
    return encoded


def _encode_part(tokenizer: Any, part: Sequence[Given], end: int | None) -> list[list[Any]]:
    return [_encoded(tokenizer, given, end) for given in part]


def _encoded(tokenizer: Any, given: Given, end: int | None) -> list[Any]:
    """Prompt and answer; or None and why there are none."""
    prompt: Any = given.prompt
    answer: Any = given.answer
    if isinstance(prompt, str):
        prompt = tokenizer(prompt)["input_ids"]
    elif not are_ids(prompt):
        if not getattr(tokenizer, "chat_template", None):
            return [None, "is a conversation, but the target's tokenizer has no chat template; give token ids"]
        try:
            prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return [None, f"the target's chat template refuses it ({reason[:200]})"]
        prompt = prompt if isinstance(prompt, list) else prompt["input_ids"]
    if isinstance(answer, str):
        answer = [
            *tokenizer(answer, add_special_tokens=False)["input_ids"],
            *([end] if given.ended and end is not None else []),
        ]
    return [[int(token) for token in prompt], [int(token) for token in answer]]
