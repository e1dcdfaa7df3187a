"""Published formats of drafters: which there are, what their config.json says, and what their tensors are called.

Facts were read from MIT- and Apache-licensed code, none of which is here: DFlash from z-lab/dflash (``dflash/model.py``), DSpark from
deepseek-ai/DeepSpec (``deepspec/modeling/dspark`` and ``deepspec/eval/dspark``) and vLLM (``models/qwen3_dspark.py`` and
``spec_decode/dspark/speculator.py``, where ``sample_from_anchor`` is told).
"""

from __future__ import annotations

from typing import Any

from ddsim.errors import DdsimError
from ddsim_reference.model.config import MOST_BLOCK, MOST_LAYERS, DrafterConfig, drafter_shapes, target_layer_ids
from ddsim_reference.model.fields import Fields
from ddsim_reference.model.heads import MOST_WIDTH, HeadConfig, head_shapes

DFLASH = ("DFlashDraftModel", "Qwen3DFlashDraftModel")
DSPARK = "Qwen3DSparkModel"
SUPPORTED = (*DFLASH, DSPARK)

REFUSED = (
    ("lilicorr", "LiLiCorr", "its scores come from a transformer over the candidates"),
    ("domino", "Domino", "its head carries a state along the drafted tokens, so that there is no lattice"),
    ("jetspec", "JetSpec", "slots of its block see the ones before only"),
    ("eagle", "EAGLE", "every drafted token needs a pass of its own"),
    ("dflash2", "DFlash 2", "its convolutions and its selector are not built"),
    ("dspark", "DSpark", f"only its layout {DSPARK} is read"),
)
"""What architectures and projectors of drafters that are not read have in their names, what they are, and why."""

MARKOV = {"markov_head.markov_w1.weight": "previous.table", "markov_head.markov_w2.weight": "out.table"}
"""DSpark's head, by its published names."""

COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
"""Copies of the target's tensors that DSpark's files may hold, and the target's names."""

CONFIDENCE = ("confidence_head.proj.weight", "confidence_head.proj.bias")


def read_drafter(fields: Fields) -> tuple[DrafterConfig, frozenset[str]]:
    """A drafter's shape by its config.json, and the tensors that its files may hold beside those of ``drafter_shapes``.

    Raises
    ------
    DdsimError
        The format is one that is not read, named in the message, or a field is missing or not what a drafter can have.
    """
    if _format(fields) == DSPARK:
        return _dspark(fields)
    shared = fields.layers()
    dflash = fields.part("dflash_config")
    if dflash.flag("causal"):
        raise _refused(fields, "jetspec")
    layers = fields.whole("num_target_layers", 1, MOST_LAYERS)
    drafter = DrafterConfig(
        **shared,
        block_size=fields.whole("block_size", 2, MOST_BLOCK),
        mask_token_id=dflash.whole("mask_token_id", 0, shared["vocab_size"] - 1),
        target_layer_ids=_target_layers(dflash, layers, target_layer_ids(layers, shared["num_layers"])),
        num_target_layers=layers,
    )
    return drafter, frozenset()


def _format(fields: Fields) -> str:
    """The architecture that a config.json names; one without a name is DFlash."""
    names = fields.get("architectures", [DFLASH[0]])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise fields.fail("architectures", names, "a list of one name")
    if fields.get("speculators_model_type", None) is not None:
        raise DdsimError(
            f"{fields.path}: the layout of the speculators library is not supported; convert it to {DSPARK}"
        )
    name = names[0]
    told = str(fields.part("dflash_config").get("projector_type", "")) if name in DFLASH else name
    for part, *_ in REFUSED if told != DSPARK else ():
        if part in told.lower():
            raise _refused(fields, part)
    if name not in SUPPORTED:
        raise fields.fail("architectures", name, f"one of {', '.join(SUPPORTED)}; other drafters are not supported")
    return name


def _refused(fields: Fields, part: str) -> DdsimError:
    name, why = next((name, why) for key, name, why in REFUSED if key == part)
    return DdsimError(f"{fields.path}: a {name} drafter is not supported: {why}; use one of {', '.join(SUPPORTED)}")


def _target_layers(fields: Fields, layers: int, *default: list[int]) -> tuple[int, ...]:
    found = fields.ids("target_layer_ids", layers, *default)
    if not found:
        raise fields.fail("target_layer_ids", [], "a list of at least one layer")
    return found


def _dspark(fields: Fields) -> tuple[DrafterConfig, frozenset[str]]:
    shared = fields.layers()
    layers = fields.whole("num_target_layers", 1, MOST_LAYERS)
    vocabulary = shared["vocab_size"]
    if fields.whole("draft_vocab_size", 1, 1 << 24, vocabulary) != vocabulary:
        raise fields.fail("draft_vocab_size", fields.get("draft_vocab_size"), f"the whole vocabulary, {vocabulary}")
    if fields.number("logit_scale", 0, 1e9, 1.0) != 1:
        raise fields.fail("logit_scale", fields.get("logit_scale"), "1")
    anchor = fields.get("sample_from_anchor", True)
    if not isinstance(anchor, bool):
        raise fields.fail("sample_from_anchor", anchor, "true or false")
    drafter = DrafterConfig(
        **shared,
        block_size=fields.whole("block_size", 1 if anchor else 2, MOST_BLOCK - 1 if anchor else MOST_BLOCK),
        mask_token_id=fields.whole("mask_token_id", 0, vocabulary - 1),
        target_layer_ids=_target_layers(fields, layers),
        num_target_layers=layers,
        sample_from_anchor=anchor,
    )
    spare = {
        *COPIES,
        *(MARKOV if markov_head(fields) else ()),
        *(CONFIDENCE if fields.flag("enable_confidence_head") else ()),
    }
    return drafter, frozenset(spare)


def markov_head(fields: Fields) -> HeadConfig | None:
    """The head that a config.json describes in DSpark's way; None for other formats, and for a rank of 0."""
    if _format(fields) != DSPARK:
        return None
    rank = fields.whole("markov_rank", 0, MOST_WIDTH)
    if rank == 0:
        return None
    kind = fields.get("markov_head_type", "vanilla")
    if kind != "vanilla":
        raise fields.fail("markov_head_type", kind, "'vanilla'; DSpark's other heads are not supported")
    return HeadConfig("markov", rank, tables=True)


def markov_shapes(head: HeadConfig, drafter: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of DSpark's head, by published name."""
    shapes = head_shapes(head, drafter)
    return {name: shapes[mine] for name, mine in MARKOV.items()}


def beside_the_head(drafter: DrafterConfig) -> frozenset[str]:
    """What DSpark's files hold beside the head."""
    return frozenset((*drafter_shapes(drafter), *COPIES, *CONFIDENCE))


def drafter_document(config: DrafterConfig, head: HeadConfig | None) -> dict[str, Any]:
    """The config.json of a drafter: DSpark's where it has DSpark's head or samples from the anchor, and DFlash's otherwise."""
    dspark = head is not None or config.sample_from_anchor
    shared: dict[str, Any] = {
        "architectures": [DSPARK if dspark else DFLASH[0]],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": not dspark,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": 8192,
        "hidden_size": config.hidden_size,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "block_size": config.block_size,
        "num_target_layers": config.num_target_layers,
    }
    ties = {"mask_token_id": config.mask_token_id, "target_layer_ids": list(config.target_layer_ids)}
    if not dspark:
        return shared | {"dflash_config": ties}
    return shared | ties | {
        "layer_types": ["full_attention"] * config.num_layers,
        "sample_from_anchor": config.sample_from_anchor,
        "num_anchors": 1,  # of training; DeepSpec's class asks for it
        "enable_confidence_head": False,
        "markov_rank": 0 if head is None else head.width,
        "markov_head_type": "vanilla",
    }  # fmt: skip
