"""The fields of a checkpoint's ``config.json``: each of its type, and within the bounds that a model can have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim_reference.model.config import MOST_LAYERS, ModelConfig

LARGEST_JSON = 1 << 28  # an index of tensors takes megabytes
_NEEDED = object()


def read_json(path: Path) -> dict[str, Any]:
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


class Fields:
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

    def part(self, key: str) -> Fields:
        """An object within; absent is empty."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, value, "an object")
        return Fields(value, self.path, self.hint)

    def layers(self, *, window: bool = False) -> dict[str, Any]:
        """What target and drafter have in common; layers with a window are refused unless they are looked after elsewhere."""
        if self.flag("attention_bias") or self.flag("mlp_bias"):
            raise DdsimError(f"{self.path}: projections with a bias are not supported")
        if self.get("hidden_act", "silu") != "silu":
            raise self.fail("hidden_act", self.get("hidden_act"), "'silu'; other activations are not supported")
        sliding = self.flag("use_sliding_window") or "sliding_attention" in str(self.get("layer_types", ""))
        if sliding and not window:
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
    fields = Fields(config, path)
    arch = config.get("model_type")
    if arch not in ("llama", "qwen3"):
        raise DdsimError(f"{path}: model_type {repr(arch)[:60]} is not supported; use a 'llama' or 'qwen3' checkpoint")
    shared = fields.layers()
    eos = fields.get("eos_token_id", [])
    ends = Fields({"eos_token_id": eos if isinstance(eos, list) else [eos]}, path)
    return ModelConfig(
        arch=arch,
        **shared,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=ends.ids("eos_token_id", shared["vocab_size"]),
        max_position_embeddings=fields.whole("max_position_embeddings", 1, 1 << 30, 2048),
        qk_norm=arch == "qwen3",
    )
