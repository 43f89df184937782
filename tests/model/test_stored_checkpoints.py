"""Checkpoint folders that are damaged: the check before a run and the load refuse the same ones, each in one line."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_lab.model.checkpoint import (
    CheckpointInfo,
    LanguageModel,
    check_language_model,
    check_policy,
    load_language_model,
    load_policy,
    save_policy,
    vlm_processor,
)
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.policy import EMBEDDING, OUTPUT_EMBEDDING
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from tests.support.models import make_policy, vlm_from_policy
from tests.support.refusals import refusal

WEIGHTS, STATISTICS = "model.safetensors", "norm_stats.safetensors"
READERS = {"policy": (check_policy, load_policy), "vlm": (check_language_model, load_language_model)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and its vision-language model, in folders of these names."""
    root, policy = tmp_path_factory.mktemp("sound"), make_policy()
    chunk = (policy.chunk_size, 20)
    stats = ActionStats(np.zeros(20), np.ones(20), np.zeros(chunk), np.ones(chunk))
    info = CheckpointInfo(weight_version=1, steps=7)
    save_policy(root / "policy", policy, PolicyProcessor(policy.config, load_tokenizer(), stats), info)
    LanguageModel(vlm_from_policy(policy), vlm_processor(policy.config, load_tokenizer()), info).save(
        root / "vlm", info
    )
    return root


@pytest.fixture
def folders(sound: Path, tmp_path: Path) -> Path:
    """Copies to be damaged."""
    return shutil.copytree(sound, tmp_path / "folders")


def refusal_of(folder: Path) -> str:
    """What both readers say of a folder; AssertionError if they do not say the same."""
    first, second = (refusal(read, folder) for read in READERS[folder.name])
    assert first == second and str(folder) in first, (first, second)
    return first


def test_sound_folders_are_read_by_both(sound: Path) -> None:
    for name, readers in READERS.items():
        for read in readers:
            read(sound / name)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        found = load_file(path)
        change(found)
        save_file(found, path, metadata={"format": "pt"})

    return damage


def filled(name: str, place: tuple[int, ...], value: float) -> Callable[[Path], None]:
    """One number of a statistic, replaced."""
    return tensors(lambda found: found[name].__setitem__(place, value))


def number(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in found if name.endswith("layers.0.mlp.gate_proj.weight"))
        found[name][3, 1] = value

    return change


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(999))


def text(content: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(content)

    return damage


def with_key(key: str, value: object) -> Callable[[Path], None]:
    """A field of an object, at a dotted place, set to a value."""

    def damage(path: Path) -> None:
        fields = json.loads(path.read_text())
        *outer, last = key.split(".")
        inner = fields
        for name in outer:
            inner = inner[name]
        inner[last] = value
        path.write_text(json.dumps(fields))

    return damage


DAMAGES = {
    "random weights": ("*", WEIGHTS, random_bytes, f"{WEIGHTS} is damaged"),
    "truncated weights": ("*", WEIGHTS, truncated, f"{WEIGHTS} is damaged"),
    "NaN": ("*", WEIGHTS, tensors(number(float("nan"))), r"layers\.0\.mlp\.gate_proj\.weight has 1 of \d+ numbers"),
    "infinity": ("*", WEIGHTS, tensors(number(-float("inf"))), r"not finite: model\..*gate_proj\.weight has 1 of"),
    "integers": ("*", WEIGHTS, tensors(lambda found: found.update(x=torch.ones(2, dtype=torch.int8))), "of type I8"),
    "another tensor": ("*", WEIGHTS, tensors(lambda found: found.update(x=torch.ones(2))), "1 tensors unexpected: x"),
    "no config": ("*", "config.json", Path.unlink, "config.json is missing"),
    "a list": ("*", "config.json", text("[]"), "expected a JSON object, found list"),
    "deep": ("*", "config.json", text("[" * 100_000), "nested too deeply"),
    "a text for a size": (
        "policy",
        "config.json",
        with_key("chunk_size", "8"),
        "chunk_size: Input should be",
    ),
    "no layers": ("vlm", "config.json", with_key("text_config.num_hidden_layers", 0), "num_layers is 0; use a number"),
    "endless layers": ("vlm", "config.json", with_key("text_config.num_hidden_layers", 10**9), "at most 1024"),
    "a token too many": ("policy", "config.json", with_key("special_token_ids.image", 10**6), "image = 1000000, but"),
    "other sizes": ("policy", "config.json", with_key("proj_width", 64), "tensors of another shape: model.action"),
    "unknown key": ("*", "lab.json", with_key("stepz", 1), "unknown key 'stepz'"),
    "negative version": ("*", "lab.json", with_key("weight_version", -1), "weight_version is -1; expected 0 to"),
    "no frame": ("*", "lab.json", with_key("history", 0), "history is 0; expected 1 to"),
    "an empty tokenizer": ("*", "tokenizer.json", text(""), "the tokenizer files in"),
    "half a tokenizer": ("*", "tokenizer.json", truncated, "the tokenizer files in"),
    "tokenizer settings": ("*", "tokenizer_config.json", text("3"), "expected a JSON object, found int"),
    "NaN statistics": (
        "policy",
        STATISTICS,
        tensors(lambda found: found["action_mean"].fill_(float("nan"))),
        "action_mean is nan",
    ),
    "zero width": (
        "policy",
        STATISTICS,
        tensors(lambda found: found["qpos_std"][4].fill_(0)),
        r"qpos_std is 0\.0 at \[4\]",
    ),
    "negative width": (
        "policy",
        STATISTICS,
        tensors(lambda found: found["action_std"][1, 2].fill_(-1)),
        r"at \[1, 2\]",
    ),
    "statistics of bytes": ("policy", STATISTICS, random_bytes, f"{STATISTICS} is damaged"),
    "generation": ("vlm", "generation_config.json", text("[]"), "expected a JSON object, found list"),
    "pictures": (
        "vlm",
        "preprocessor_config.json",
        with_key("patch_size", [16]),
        "patch_size: Input should be",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_before_a_run_and_at_load_in_the_same_line(folders: Path, name: str) -> None:
    kind, file, damage, said = DAMAGES[name]
    for folder in READERS if kind == "*" else [kind]:
        damage(folders / folder / file)
        found = refusal_of(folders / folder)
        assert re.search(said, found), found


def shard(folder: Path) -> None:
    """The weights in three files with an index, as transformers writes large ones."""
    found = load_file(folder / WEIGHTS)
    names = {key: f"model-{1 + place % 3:05}-of-00003.safetensors" for place, key in enumerate(sorted(found))}
    for name in set(names.values()):
        save_file({key: found[key] for key in found if names[key] == name}, folder / name, metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("kind", READERS)
def test_shards_are_read_like_one_file_and_a_missing_or_damaged_one_is_named(folders: Path, kind: str) -> None:
    folder = folders / kind
    shard(folder)
    for read in READERS[kind]:
        read(folder)
    last = folder / "model-00003-of-00003.safetensors"
    tensors(lambda found: next(iter(found.values())).fill_(float("nan")))(last)
    assert "not finite" in refusal_of(folder)
    truncated(last)
    assert f"{last} is damaged" in refusal_of(folder)
    last.unlink()
    assert f"the index names {last.name}, which is missing" in refusal_of(folder)
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')
    assert "which is missing" in refusal_of(folder)


def test_two_embeddings_where_the_model_has_one_are_refused_by_both(folders: Path) -> None:
    tensors(lambda found: found.update({EMBEDDING: found[OUTPUT_EMBEDDING] + 1}))(folders / "policy" / WEIGHTS)
    assert "must be equal: the embedding is tied" in refusal_of(folders / "policy")


def test_a_tokenizer_of_another_model_is_refused(folders: Path) -> None:
    path = folders / "policy" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["one more"] = 3584
    path.write_text(json.dumps(content))
    assert "has the id 3584 ('one more') but the model knows 3584 tokens" in refusal_of(folders / "policy")
