"""`backend: trl` of the cold start: TRL's steps are those of the Learner, from folder to folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from algos.cross_entropy import CrossEntropy
from rl_lab.common.errors import UserError
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.checkpoint import CheckpointInfo, read_info
from rl_lab.records.questions import Conversation, item_conversation
from rl_lab.records.token_batches import chat_batch
from rl_lab.trl_backend.sft import train_sft
from rl_lab.trl_backend.trainer import Settings, load_vlm
from tests.support.models import make_vlm, save_policy_of
from tests.trl_backend.builders import make_folder, make_item

ORDER = [[0, 2, 3], [1, 4, 5], [5, 0, 1]]
CLOSE: dict[str, Any] = {"rel": 1e-5}
"""Measured: losses 1.2e-7, gradient norms 3e-7, relative, with one thread on a CPU, in float32."""


def conversations() -> list[Conversation]:
    """One image, two or none; the last has two answers, both of which are learned."""
    made = [item_conversation(make_item(number, num_images=number % 3)) for number in range(5)]
    turns = [("system", "be brief"), ("user", "where"), ("assistant", "left"), ("user", "sure"), ("assistant", "yes")]
    return [*made, Conversation("two", tuple({"role": role, "content": text} for role, text in turns), (), ())]


def batches(folder: Path) -> Any:
    """The batch of conversations by their numbers."""
    processor, data = load_vlm(folder).processor, conversations()
    return lambda rows: chat_batch([data[row].chat() for row in rows], processor)


@pytest.mark.parametrize("groups", [("vision", "vlm"), ("vlm",)], ids="-".join)
def test_losses_and_weights_are_the_learners(groups: tuple[str, ...], tmp_path: Path) -> None:
    folder, data = make_folder(tmp_path / "in"), conversations()
    optimiser = Optimiser(lr=2e-4, steps=3, warmup=1, weight_decay=0.1)
    told: dict[int, dict[str, float]] = {}
    settings = Settings(optimiser, groups, gradient_checkpointing=groups == ("vlm",))
    train_sft(load_vlm(folder), batches(folder), ORDER, settings, tmp_path / "out", told.__setitem__)

    start = load_vlm(folder)
    model: Any = start.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = Learner(model, seed=0)
    learner.add("sft", CrossEntropy(groups=groups), optimiser)
    for step, rows in enumerate(ORDER, start=1):
        ours = learner.step("sft", chat_batch([data[row].chat() for row in rows], start.processor))
        assert told[step] == pytest.approx({name: ours[name] for name in told[step]}, **CLOSE)
    theirs = load_vlm(tmp_path / "out").model.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    far, moved = torch.zeros(()), torch.zeros(())
    for name, value in model.state_dict().items():
        far += (theirs[name] - value).square().sum()
        moved += (before[name] - value).square().sum()
    # Of all weights, for AdamW steps by the sign of the few gradients that are all rounding error. Measured: 1.4e-4.
    assert far.sqrt() < 1e-3 * moved.sqrt()
    assert read_info(tmp_path / "out") == CheckpointInfo(weight_version=1, steps=3)


def test_the_checkpoint_has_the_files_and_tensors_of_the_first(tmp_path: Path) -> None:
    folder, output = make_folder(tmp_path / "in"), tmp_path / "out"
    settings = Settings(Optimiser(lr=1e-4, steps=2))
    train_sft(load_vlm(folder), batches(folder), [[0], [1]], settings, output, lambda step, metrics: None)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in output.iterdir()} == names | {"lab.json"}
    for name in names - {"model.safetensors"}:
        assert (output / name).read_bytes() == (folder / name).read_bytes(), name
    before, after = (load_file(each / "model.safetensors") for each in (folder, output))
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}


def test_what_it_cannot_train_is_told(tmp_path: Path) -> None:
    settings, log = Settings(Optimiser(lr=1e-4, steps=2)), lambda step, metrics: None
    start = load_vlm(make_folder(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"steps have \[1, 2\] rows"):
        train_sft(start, batches(tmp_path / "in"), [[0], [1, 2]], settings, tmp_path, log)
    with pytest.raises(ValueError, match=r"unknown parameter groups \['expert'\]; there are \['vision', 'vlm'\]"):
        train_sft(start, batches(tmp_path / "in"), [[0]], replace(settings, groups=("expert",)), tmp_path, log)
    save_policy_of(make_vlm(), "nano", tmp_path / "policy")
    with pytest.raises(UserError, match="trains vision-language models, not policies"):
        load_vlm(tmp_path / "policy")


def test_a_loss_that_is_not_finite_writes_nothing(tmp_path: Path) -> None:
    start = load_vlm(make_folder(tmp_path / "in"))
    with torch.no_grad():
        start.model.get_input_embeddings().weight.fill_(float("nan"))
    settings = Settings(Optimiser(lr=1e-4, steps=2))
    with pytest.raises(RuntimeError, match="TRL: loss is nan at step 1; no checkpoint is written"):
        train_sft(start, batches(tmp_path / "in"), [[0], [1]], settings, tmp_path / "out", lambda step, metrics: None)
    assert not (tmp_path / "out").exists()
