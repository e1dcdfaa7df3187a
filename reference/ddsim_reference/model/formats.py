"""Published formats of drafters: which there are, what their config.json says, and what their tensors are called.

Facts were read from MIT- and Apache-licensed code, none of which is here: DFlash and DFlash 2 from z-lab/dflash (``dflash/model.py``
and the header of a released checkpoint in ``tests/fixtures``), DSpark from
deepseek-ai/DeepSpec (``deepspec/modeling/dspark`` and ``deepspec/eval/dspark``) and vLLM (``models/qwen3_dspark.py`` and
``spec_decode/dspark/speculator.py``, where ``sample_from_anchor`` is told).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ddsim.errors import DdsimError
from ddsim_reference.model.config import MOST_BLOCK, MOST_LAYERS, DrafterConfig, drafter_shapes, target_layer_ids
from ddsim_reference.model.fields import Fields
from ddsim_reference.model.heads import MOST_WIDTH, HeadConfig, head_shapes

DFLASH = ("DFlashDraftModel", "Qwen3DFlashDraftModel")
DSPARK = "Qwen3DSparkModel"
DFLASH2 = "DFlash2DraftModel"
SUPPORTED = (*DFLASH, DFLASH2, DSPARK)

REFUSED = (
    ("lilicorr", "LiLiCorr", "its scores come from a transformer over the candidates"),
    ("domino", "Domino", "its head carries a state along the drafted tokens, so that there is no lattice"),
    ("jetspec", "JetSpec", "slots of its block see the ones before only"),
    ("eagle", "EAGLE", "every drafted token needs a pass of its own"),
    ("dspark", "DSpark", f"only its layout {DSPARK} is read"),
)
"""What architectures and projectors of drafters that are not read have in their names, what they are, and why."""

HEADS = {
    "markov": {"markov_head.markov_w1.weight": "previous.table", "markov_head.markov_w2.weight": "out.table"},
    "selector": {
        "candidate_selector.predecessor_codebook": "previous.table",
        "candidate_selector.successor_codebook": "out.table",
        "candidate_selector.hidden_projection.weight": "hidden.weight",
    },
}
"""Tensors of published heads, by published name."""

WIDTH = 16
"""Candidates a depth that a selector is trained for, and that lattices have here."""

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
    architecture = _format(fields)
    if architecture == DSPARK:
        return _dspark(fields)
    second = architecture == DFLASH2
    shared = fields.layers(window=second)
    dflash = fields.part("dflash_config")
    if dflash.flag("causal"):
        raise _refused(fields, "jetspec")
    layers = fields.whole("num_target_layers", 1, MOST_LAYERS)
    size = dflash if second and dflash.get("block_size", None) is not None else fields
    drafter = DrafterConfig(
        **shared,
        block_size=size.whole("block_size", 2, MOST_BLOCK),
        mask_token_id=dflash.whole("mask_token_id", 0, shared["vocab_size"] - 1),
        target_layer_ids=_target_layers(dflash, layers, target_layer_ids(layers, shared["num_layers"])),
        num_target_layers=layers,
    )
    if not second:
        return drafter, frozenset()
    group = dflash.whole("conv_group_size", 1, 1 << 20)
    if drafter.hidden_size % group:
        raise dflash.fail("conv_group_size", group, f"a divisor of hidden_size, {drafter.hidden_size}")
    taps = dflash.whole("conv_kernel_size", 1, drafter.block_size)
    for part, key in (
        (dflash, "input_embedding_scale"), (dflash, "output_multiplier"), (dflash, "final_logit_softcapping"),
        (fields, "sample_from_anchor"),
    ):  # fmt: skip
        value = part.get(key, None)
        if value not in (None, 0 if key in ("final_logit_softcapping", "sample_from_anchor") else 1):
            raise part.fail(key, value, "absent; it is not supported")
    drafter = replace(drafter, convolution=(taps, group), window=_window(fields, drafter.block_size))
    return drafter, frozenset(HEADS["selector"])


def _window(fields: Fields, block: int) -> int | None:
    """Positions that a block sees in both directions; None where all layers see all."""
    sliding = "sliding_attention" in str(fields.get("layer_types", ""))
    causal = fields.get("is_causal", sliding)  # as the published code reads it
    if causal is not False:
        raise fields.fail("is_causal", causal, "false; blocks whose slots see the ones before only are not supported")
    return fields.whole("sliding_window", block + 1, 1 << 30) if sliding else None


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
        *(HEADS["markov"] if published_head(fields) else ()),
        *(CONFIDENCE if fields.flag("enable_confidence_head") else ()),
    }
    return drafter, frozenset(spare)


def published_head(fields: Fields) -> HeadConfig | None:
    """The head that is part of a published format: DSpark's, unless its rank is 0, or DFlash 2's; None for other formats."""
    architecture = _format(fields)
    if architecture == DFLASH2:
        selector = fields.part("dflash_config")
        if selector.get("selector_top_k") != WIDTH:
            raise selector.fail("selector_top_k", selector.get("selector_top_k"), str(WIDTH))
        return HeadConfig("selector", selector.whole("selector_rank", 1, MOST_WIDTH), tables=True)
    if architecture != DSPARK:
        return None
    rank = fields.whole("markov_rank", 0, MOST_WIDTH)
    if rank == 0:
        return None
    kind = fields.get("markov_head_type", "vanilla")
    if kind != "vanilla":
        raise fields.fail("markov_head_type", kind, "'vanilla'; DSpark's other heads are not supported")
    return HeadConfig("markov", rank, tables=True)


def published_shapes(head: HeadConfig, drafter: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a published head, by published name."""
    shapes = head_shapes(head, drafter)
    return {name: shapes[mine] for name, mine in HEADS[head.form].items()}


def beside_the_head(drafter: DrafterConfig) -> frozenset[str]:
    """What the files of a drafter with a published head hold beside it."""
    return frozenset((*drafter_shapes(drafter), *COPIES, *CONFIDENCE))


def drafter_document(
    config: DrafterConfig, head: HeadConfig | None, dtype: str = "bfloat16", positions: int = 8192
) -> dict[str, Any]:
    """The config.json of a drafter: DSpark's where it has DSpark's head or samples from the anchor, and DFlash's otherwise."""
    if config.convolution is not None:
        raise DdsimError("a drafter with convolutions is read only; its format is not written")
    dspark = head is not None or config.sample_from_anchor
    shared: dict[str, Any] = {
        "architectures": [DSPARK if dspark else DFLASH[0]],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": dtype,
        "tie_word_embeddings": not dspark,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": positions,
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
