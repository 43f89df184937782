"""Checkpoint folders: what is written is read, byte for byte, and what does not fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_lab.benchmarks.golden import golden_path
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import EMBEDDING, OUTPUT_EMBEDDING, HyVLAPolicy
from rl_lab.model.processor import PolicyProcessor
from tests.support.models import HUB_ID, make_policy, put_into_cache

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_policy().save_pretrained(tmp_path / "first")
    return tmp_path / "first"


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the dict of tensors in a folder."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_round_trip_is_byte_stable(folder: Path, tmp_path: Path) -> None:
    HyVLAPolicy.from_pretrained(folder).save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", WEIGHTS, "rl_lab_auto.py"]
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_loading_restores_the_weights_and_what_is_trained(folder: Path) -> None:
    saved, loaded = make_policy(), HyVLAPolicy.from_pretrained(folder)
    for (name, before), (other, after) in zip(saved.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other and torch.equal(before, after) and before.requires_grad == after.requires_grad
    assert loaded.get_parameter(EMBEDDING) is loaded.get_parameter(OUTPUT_EMBEDDING)


def test_a_released_file_keeps_its_tensor_names_and_shapes(tmp_path: Path) -> None:
    HyVLAPolicy.from_pretrained(golden_path("policy")).save_pretrained(tmp_path)
    expected = json.loads(golden_path("policy_keys.json").read_text())
    written = load_file(tmp_path / WEIGHTS)
    assert {key: list(value.shape) for key, value in written.items()} == expected
    released = load_file(golden_path("policy") / WEIGHTS)
    assert all(torch.equal(written[key], released[key]) and written[key].dtype == torch.bfloat16 for key in released)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "hy_vla" and fields["architectures"] == ["HyVLAPolicy"]
    stated = json.loads((golden_path("policy") / "config.json").read_text())
    assert {key: fields[key] for key in stated if key != "use_cache"} == {
        key: value for key, value in stated.items() if key != "use_cache"
    }


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_released_checkpoint_is_byte_stable_after_its_first_round(tmp_path: Path, dtype: torch.dtype | None) -> None:
    HyVLAPolicy.from_pretrained(golden_path("policy"), dtype=dtype).save_pretrained(tmp_path / "first")
    HyVLAPolicy.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    expected = torch.bfloat16 if dtype is None else dtype
    assert {value.dtype for value in load_file(tmp_path / "second" / WEIGHTS).values()} == {expected}


def test_a_given_config_is_completed_like_the_one_of_the_folder() -> None:
    folder = golden_path("policy")
    given = HyVLAConfig.from_pretrained(folder, use_video_encoder=True)
    completed = HyVLAPolicy.from_pretrained(folder, config=given).config
    alone = HyVLAPolicy.from_pretrained(folder).config
    assert completed.use_video_encoder and not alone.use_video_encoder
    assert completed.vision_sizes == alone.vision_sizes
    assert completed.special_token_ids == alone.special_token_ids and not given.special_token_ids


def test_a_config_silent_about_vision_heads_is_refused_where_no_tensor_tells(tmp_path: Path) -> None:
    shutil.copytree(golden_path("policy"), tmp_path / "silent")
    path = tmp_path / "silent" / "config.json"
    fields = json.loads(path.read_text())
    del fields["vlm_config_dict"]["vision_config"]["num_attention_heads"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="attention heads of its vision tower of width"):
        HyVLAPolicy.from_pretrained(tmp_path / "silent")


def test_the_language_config_may_be_flat(tmp_path: Path) -> None:
    nested = HyVLAPolicy.from_pretrained(golden_path("policy"))
    shutil.copytree(golden_path("policy"), tmp_path / "flat")
    path = tmp_path / "flat" / "config.json"
    fields = json.loads(path.read_text())
    language = fields["vlm_config_dict"]
    fields["vlm_config_dict"] = language | language.pop("text_config")
    path.write_text(json.dumps(fields))
    flat = HyVLAPolicy.from_pretrained(tmp_path / "flat")
    assert flat.config.vlm_sizes == nested.config.vlm_sizes
    assert flat.config.vision_sizes == nested.config.vision_sizes


def test_sharded_files_are_read_and_written(folder: Path, tmp_path: Path) -> None:
    policy = HyVLAPolicy.from_pretrained(folder)
    for name in ("first", "second"):
        policy.save_pretrained(tmp_path / name / "sharded", max_shard_size="1MB")
        policy = HyVLAPolicy.from_pretrained(tmp_path / name / "sharded")
    files = sorted(path.name for path in (tmp_path / "first" / "sharded").iterdir())
    assert len(files) > 4 and WEIGHTS not in files
    for name in files:
        first, second = (tmp_path / attempt / "sharded" / name for attempt in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name
    policy.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_hub_id_is_read_from_the_local_cache(tmp_path: Path) -> None:
    options = put_into_cache(golden_path("policy"), tmp_path)
    policy = HyVLAPolicy.from_pretrained(HUB_ID, **options)
    released = HyVLAPolicy.from_pretrained(golden_path("policy"))
    assert torch.equal(policy.get_parameter(EMBEDDING), released.get_parameter(EMBEDDING))
    assert policy.config.to_diff_dict() == released.config.to_diff_dict()
    processor = PolicyProcessor.from_pretrained(HUB_ID, **options)
    assert processor.config.image_size == released.config.image_size


def test_a_name_that_is_neither_folder_nor_cached_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("owner/absent", str(tmp_path / "absent")):
        with pytest.raises(ValueError, match=f"no checkpoint.* {name}") as caught:
            HyVLAPolicy.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
        assert "\n" not in str(caught.value)


def test_both_names_of_the_tied_embedding_may_be_there_if_they_agree(folder: Path) -> None:
    def double(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING] = tensors[OUTPUT_EMBEDDING].clone()

    rewrite(folder, double)
    loaded = HyVLAPolicy.from_pretrained(folder)
    assert loaded.get_parameter(EMBEDDING) is loaded.get_parameter(OUTPUT_EMBEDDING)


@pytest.mark.parametrize("name", [EMBEDDING, OUTPUT_EMBEDDING])
def test_the_tied_embedding_is_read_under_either_name(folder: Path, name: str) -> None:
    expected = make_policy().get_parameter(EMBEDDING)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors.pop(OUTPUT_EMBEDDING)

    rewrite(folder, rename)
    assert torch.equal(HyVLAPolicy.from_pretrained(folder).get_parameter(EMBEDDING), expected)


def test_known_surplus_tensors_are_ignored(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.dual_tower.vlm.model.visual.vision_tower.attn_pool.latent"] = torch.zeros(1, 3)
        tensors["model.dual_tower.expert.model.embed_tokens.weight"] = torch.zeros(5, 3)
        tensors["model.dual_tower.expert.lm_head.weight"] = torch.zeros(5, 3)

    rewrite(folder, add)
    HyVLAPolicy.from_pretrained(folder)


def test_weights_that_do_not_fit_are_refused_with_everything_that_is_wrong(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.state_proj.bias"]
        tensors["model.surplus"] = torch.zeros(1)
        tensors["model.action_out_proj.bias"] = torch.zeros(31)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as caught:
        HyVLAPolicy.from_pretrained(folder)
    message = str(caught.value)
    assert "1 tensors missing: model.state_proj.bias" in message
    assert "1 tensors unexpected: model.surplus" in message
    assert "model.action_out_proj.bias ((31,), the config asks for (32,))" in message
    assert "\n" not in message


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(golden_path("vlm"), tmp_path / "vlm")
    with pytest.raises(ValueError, match="not a policy checkpoint: tensor model.dual_tower"):
        HyVLAPolicy.from_pretrained(tmp_path / "vlm")


@pytest.mark.parametrize("missing", [WEIGHTS, "config.json"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        HyVLAPolicy.from_pretrained(folder)


def test_a_folder_without_tokenizer_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json in"):
        PolicyProcessor.from_pretrained(folder)
