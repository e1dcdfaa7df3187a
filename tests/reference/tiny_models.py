"""A tiny target and drafter as checkpoint folders, with a tokenizer and a chat template: what the command line loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ddsim_reference.model.checkpoint import gguf_name, save_drafter, save_target
from ddsim_reference.model.config import ModelConfig, Weights
from tests.reference import tiny

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


def save_gguf(path: Path, arch: str = "llama", kind: str = "F32", **changes: Any) -> tuple[ModelConfig, Weights]:
    """A tiny target as a GGUF file, written with the ``gguf`` package as llama.cpp's converter does; what it holds."""
    import gguf

    config, weights = tiny.target(arch, **changes)
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"word{i}" for i in range(config.vocab_size)])
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_heads if "q_proj" in name else config.num_kv_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        wanted = gguf.GGMLQuantizationType[kind] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config, weights
