"""Folders and hub ids load through transformers' Auto classes without remote code, and are written back unchanged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rl_lab.benchmarks.golden import golden_path
from rl_lab.model.chat import HunYuanVLMoTProcessor, ImageProcessor
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.model.vlm import EMBEDDING, OUTPUT_EMBEDDING, HunYuanVLMoTForConditionalGeneration
from rl_lab.model.vlm_config import HyVLMConfig
from tests.support.models import HUB_ID, make_policy, put_into_cache, vlm_from_policy

WRITTEN = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "rl_lab_auto.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
]


def write_vlm(folder: Path) -> Path:
    """A checkpoint folder of the vision-language side of a nano policy."""
    policy = make_policy()
    vlm_from_policy(policy).save_pretrained(folder)
    vlm_processor(policy.config, load_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_vlm(tmp_path / "vlm")


@pytest.mark.parametrize("from_hub", [False, True])
def test_the_auto_classes_load_a_vision_language_model(folder: Path, tmp_path: Path, from_hub: bool) -> None:
    options = put_into_cache(folder, tmp_path / "hub") if from_hub else {}
    name = HUB_ID if from_hub else str(folder)
    assert isinstance(AutoConfig.from_pretrained(name, **options), HyVLMConfig)
    assert isinstance(AutoTokenizer.from_pretrained(name, **options), PreTrainedTokenizerFast)
    processor = AutoProcessor.from_pretrained(name, **options)
    assert isinstance(processor, HunYuanVLMoTProcessor) and isinstance(processor.image_processor, ImageProcessor)
    expected = load_file(folder / "model.safetensors")
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        model: Any = auto.from_pretrained(name, **options)
        assert type(model) is HunYuanVLMoTForConditionalGeneration
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items() if key in expected)
    out = model.generate(**processor(text="a"), max_new_tokens=2, do_sample=False)
    assert out.shape[1] > 1


@pytest.mark.parametrize("from_hub", [False, True])
def test_the_auto_classes_load_a_policy(tmp_path: Path, from_hub: bool) -> None:
    policy = make_policy()
    policy.save_pretrained(tmp_path / "policy")
    PolicyProcessor(policy.config, load_tokenizer()).save_pretrained(tmp_path / "policy")
    options = put_into_cache(tmp_path / "policy", tmp_path / "hub") if from_hub else {}
    name = HUB_ID if from_hub else str(tmp_path / "policy")
    assert isinstance(AutoConfig.from_pretrained(name, **options), HyVLAConfig)
    loaded = AutoModel.from_pretrained(name, **options)
    assert type(loaded) is HyVLAPolicy
    assert all(torch.equal(value, policy.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert isinstance(AutoTokenizer.from_pretrained(name, **options), PreTrainedTokenizerFast)


def test_code_that_a_checkpoint_names_is_not_asked_for(folder: Path) -> None:
    for name, entries in {
        "config.json": {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"},
        "preprocessor_config.json": {"AutoProcessor": "processing.Processor"},
    }.items():
        stated = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stated | {"auto_map": entries}))
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), HunYuanVLMoTForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(folder), HunYuanVLMoTProcessor)


def test_the_stock_image_processor_reads_our_config(folder: Path) -> None:
    assert type(AutoImageProcessor.from_pretrained(folder)).__name__.startswith("Qwen2VLImageProcessor")


NOT_IMPORTED = """
import os, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
for name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork():  # loading imports rl_lab, so each class loads in a child
        assert os.wait()[1] == 0, name
        continue
    assert not any(module.split(".")[0] == "rl_lab" for module in sys.modules)
    loaded = globals()[name].from_pretrained(folder, trust_remote_code=True)
    print(type(loaded).__module__, type(loaded).__name__)
    if hasattr(loaded, "state_dict"):
        loaded.save_pretrained(folder + "/again")
    sys.exit()
"""


def test_a_folder_loads_where_rl_lab_is_installed_but_not_imported(folder: Path, tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path / "policy")
    loads = [
        ("AutoProcessor", folder, HunYuanVLMoTProcessor),
        ("AutoModelForCausalLM", folder, HunYuanVLMoTForConditionalGeneration),
        ("AutoConfig", tmp_path / "policy", HyVLAConfig),
        ("AutoModel", tmp_path / "policy", HyVLAPolicy),
    ]
    command = [sys.executable, "-c", NOT_IMPORTED, *(str(part) for name, given, _ in loads for part in (name, given))]
    own = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    expected = [f"{made.__module__} {made.__name__}" for _, _, made in loads]
    assert [line for line in done.stdout.splitlines() if line.startswith("rl_lab")] == expected
    for given in (folder, tmp_path / "policy"):
        written = {path.name for path in (given / "again").glob("*.py")}
        assert written == {"rl_lab_auto.py"}, "no sources of the lab"


def rewrite(source: Path, target: Path) -> None:
    """Load a checkpoint folder and save it elsewhere."""
    HunYuanVLMoTForConditionalGeneration.from_pretrained(source).save_pretrained(target)
    HunYuanVLMoTProcessor.from_pretrained(source).save_pretrained(target)


def test_a_round_trip_is_byte_stable(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, tmp_path / "second")
    assert sorted(path.name for path in folder.iterdir()) == WRITTEN
    for name in WRITTEN:
        assert (folder / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_released_file_keeps_names_values_and_type(tmp_path: Path) -> None:
    HunYuanVLMoTForConditionalGeneration.from_pretrained(golden_path("vlm")).save_pretrained(tmp_path)
    written, released = (load_file(where / "model.safetensors") for where in (tmp_path, golden_path("vlm")))
    assert written.keys() == released.keys() == json.loads(golden_path("vlm_keys.json").read_text()).keys()
    assert EMBEDDING in written and OUTPUT_EMBEDDING not in written
    assert all(torch.equal(written[key], released[key]) for key in released)
    assert {value.dtype for value in written.values()} == {torch.bfloat16}
    stated = json.loads((golden_path("vlm") / "config.json").read_text())
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["architectures"] == stated["architectures"] and fields["model_type"] == stated["model_type"]
    text = {key: value for key, value in stated["text_config"].items() if key not in ("architectures", "model_type")}
    assert {key: fields["text_config"].get(key, value) for key, value in text.items()} == text


def test_shards_are_written_and_read(folder: Path, tmp_path: Path) -> None:
    model = HunYuanVLMoTForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    loaded = HunYuanVLMoTForConditionalGeneration.from_pretrained(tmp_path / "sharded")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_flat_config_with_stale_vision_sizes_is_mended(tmp_path: Path) -> None:
    shutil.copytree(golden_path("vlm"), tmp_path / "flat")
    nested = json.loads((tmp_path / "flat" / "config.json").read_text())
    text = nested.pop("text_config")
    vision = nested["vision_config"] | {"num_hidden_layers": 1, "intermediate_size": 7, "max_image_size": 64}
    flat = {**text, **nested, "vision_config": vision}
    (tmp_path / "flat" / "config.json").write_text(json.dumps(flat))
    mended = HunYuanVLMoTForConditionalGeneration.from_pretrained(tmp_path / "flat").config
    whole = HunYuanVLMoTForConditionalGeneration.from_pretrained(golden_path("vlm")).config
    assert (mended.vlm_sizes, mended.vision_sizes) == (whole.vlm_sizes, whole.vision_sizes)
    assert mended.special_token_ids == whole.special_token_ids


def test_another_models_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="not a checkpoint of the vision-language model: tensor model.visual"):
        HunYuanVLMoTForConditionalGeneration.from_pretrained(
            golden_path("policy"), config=HyVLMConfig.from_pretrained(golden_path("vlm"))
        )


def test_a_policy_and_its_vision_language_side_share_weights() -> None:
    policy = HyVLAPolicy.from_pretrained(golden_path("policy"))
    vlm = vlm_from_policy(policy)
    released = HunYuanVLMoTForConditionalGeneration.from_pretrained(golden_path("vlm"))
    assert vlm.get_parameter(EMBEDDING) is policy.model.vlm.language_model.model.embed_tokens.weight
    assert (vlm.config.vlm_sizes, vlm.config.vision_sizes) == (released.config.vlm_sizes, released.config.vision_sizes)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(vlm.eval()(ids).logits, released.eval()(ids).logits)
        assert torch.equal(policy.model.vlm(ids).last_hidden_state, released.model(ids).last_hidden_state)
