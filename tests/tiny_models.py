"""A tiny target and drafter as checkpoint folders, with a tokenizer and a chat template: what the command line loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from ddsim_reference.checkpoint import save_drafter, save_target

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"


def save(folder: Path, **drafter_changes: Any) -> tuple[Path, Path]:
    """Folders of a target (61 words) and of a drafter for it, whose shape may be made to disagree."""
    config, weights = tiny.target()
    shape, draft_weights = tiny.drafter(config, **drafter_changes)
    target, drafter = folder / "target", folder / "drafter"
    save_target(target, config, weights)
    save_drafter(drafter, shape, draft_weights, {"made_by": "a test"})
    words = ["user", "assistant", "?", *(f"word{i}" for i in range(config.vocab_size - 4)), "<mask>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", mask_token="<mask>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(target)
    return target, drafter
