"""Sequence classifiers of transformers as reward models: published ones as they are, others after TRL's training."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rewards.config import RewardConfig
from rl_lab.common.errors import UserError
from rl_lab.rollouts.answering import make_rewards, score
from rl_lab.rollouts.reward_model import MODEL_FILE, TextClassifier, check_classifier, load_outcome_model
from rl_lab.stages.kinds import expand, load_config
from rl_lab.stages.outcome import OutcomeLabelsKind, OutcomeMemberKind, OutcomeModelKind
from rl_lab.stages.preflight import check_machine
from tests.support.outcome import outcome_context
from tests.support.questions import make_item, write_choices
from tests.support.refusals import refusal
from tests.support.rollouts import answered

WORDS = ["[PAD]", "[UNK]", "<", ">", "/", "answer", "A", "B", "which", "user", "assistant"]
CHAT = "{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
RIGHT, WRONG = "<answer>A</answer>", "<answer>B</answer>"
OPTIONS = ["outcome.backend=trl", "outcome.learns=preference"]


def save_tokenizer(folder: Path, **options: str) -> None:
    """A tokenizer of a few words."""
    bare = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]")
    for name, value in options.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def save_encoder(folder: Path, labels: int = 1) -> Path:
    """A classifier as somebody published it."""
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, num_labels=labels, **SIZES)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")
    return folder


def save_decoder(folder: Path) -> Path:
    """A language model without a head, which chats."""
    torch.manual_seed(2)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **SIZES)).save_pretrained(folder)
    save_tokenizer(folder, eos_token="[PAD]", chat_template=CHAT)
    return folder


def test_scores_are_the_models_own_whatever_stands_beside_an_answer(tmp_path):
    found = TextClassifier.load(save_encoder(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    long = "which which which A B"
    scores = found.scores([("which", ()), (long, ())], [RIGHT, WRONG])
    for row, (question, answer) in enumerate((("which", RIGHT), (long, WRONG))):
        ids = torch.tensor([found.tokenizer(question, answer)["input_ids"]])
        assert scores[row] == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-6)


def test_of_what_is_too_long_the_answer_stays(tmp_path):
    found = TextClassifier.load(save_encoder(tmp_path))
    ids = found.encode("which " * 100, "answer A")
    assert found.limit == len(ids) == 64
    assert found.tokenizer.decode(ids).endswith("which answer A")
    assert np.isfinite(found.scores([("which " * 100, ())], ["answer A"])).all()


def test_a_model_that_chats_reads_its_template_and_gets_a_head_of_the_seed(tmp_path):
    folder = save_decoder(tmp_path)
    one, same, other = (TextClassifier.load(folder, seed) for seed in (1, 1, 2))
    assert one.tokenizer.decode(one.encode("which", "A")) == "user which assistant A"
    scores = [found.scores([("which", ())], ["A"]).item() for found in (one, same, other)]
    assert scores[0] == scores[1] != scores[2]


def test_a_published_classifier_is_a_reward_by_name(tmp_path):
    values = {"weights": {"learned": 1.0}, "models": {"learned": {"path": str(save_encoder(tmp_path))}}}
    (scored,), _ = score(make_rewards(RewardConfig.read(values, "rewards")), answered([make_item(1)], [RIGHT, WRONG]))
    logits = TextClassifier.load(tmp_path).scores([(make_item(1).prompt, ())] * 2, [RIGHT, WRONG])
    assert scored.rewards == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize("save", [save_encoder, save_decoder])
def test_members_are_trained_calibrated_and_examined(tmp_path, questions, save):
    def context(name, *given, **params):
        (tmp_path / name).mkdir()  # a run folder each, because one takes one at a time
        return outcome_context(tmp_path / name, name, *given, **params)

    traces = write_choices(tmp_path / "traces")
    labelled = context("labels", "outcome_labels", {"traces": traces, "questions": questions})
    OutcomeLabelsKind().run(None, labelled)
    options = [*OPTIONS, f"outcome.classifier={save(tmp_path / 'start')}", "outcome.members=2", "outcome.lr=0.01"]
    members = {}
    for number in (1, 2):
        member = context(f"m{number}", "outcome_member", {"labels": labelled.out}, options, member=number)
        OutcomeMemberKind().run(None, member)
        members[f"member.{number}"] = member.out
    model = context("model", "outcome_model", {"labels": labelled.out} | members, options)
    OutcomeModelKind().run(None, model)
    record = json.loads((model.out / MODEL_FILE).read_text())
    assert len(record["platt"]) == 2 and record["test"]["answers"] > 0
    assert record["test"]["auroc"] == record["blank"]["auroc"]  # it sees no pictures
    asked = [("which", ())] * 2
    before = TextClassifier.load(tmp_path / "start").scores(asked, [RIGHT, WRONG])
    trained = load_outcome_model(model.out).logits(asked, [RIGHT, WRONG])
    assert not np.allclose(trained[0], trained[1]) and not np.allclose(trained[0], before)


def test_pairs_are_learned(tmp_path, questions):
    """With truth that the text alone tells, a hundred steps put nearly every pair in order."""
    from rl_lab.learner.learner import Optimiser
    from rl_lab.trl_backend.outcome import CLASSIFIER, train_classifier
    from rl_lab.trl_backend.trainer import Settings

    found, accuracy = TextClassifier.load(save_decoder(tmp_path)), []
    pairs = [(found.encode("which", RIGHT), found.encode("which", WRONG))] * 4
    settings = Settings(Optimiser(steps=100, lr=0.01, warmup=1), (CLASSIFIER,))
    train_classifier(found, pairs, [[0, 1, 2, 3]] * 100, settings, lambda _, said: accuracy.append(said))
    assert accuracy[-1]["outcome/accuracy"] == 1.0 and accuracy[-1]["loss"] < 0.1 < accuracy[0]["loss"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "no sequence classifier of transformers with its tokenizer"),
        (lambda folder: save_encoder(folder, labels=3), "gives 3 numbers for an answer; a reward model gives 1"),
        (lambda folder: (save_encoder(folder) / "config.json").write_text("{torn"), "with its tokenizer"),
        (lambda folder: save_encoder(folder) and save_tokenizer(folder), "neither a pad nor an eos token"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_starts(tmp_path, run_of_answers, make, said):
    folder = tmp_path / "start"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=f"outcome.classifier: .*{said}"):
        check_machine(load_config(run_of_answers, [*OPTIONS, f"outcome.classifier={folder}"]))


def test_a_classifier_needs_no_model_beside_stored_answers(tmp_path, run_of_answers):
    folder = save_encoder(tmp_path / "start")
    with pytest.raises(UserError, match="outcome_model needs cold_start before it, or a trained model"):
        load_config(run_of_answers, OPTIONS)
    config = load_config(run_of_answers, [*OPTIONS, f"outcome.classifier={folder}"])
    (member,) = (node for node in expand(config) if node.kind == "outcome_member")
    assert member.inputs == {"labels": "outcome_model.labels"}
    with pytest.raises(UserError, match="trained by TRL's RewardTrainer; set backend: trl and learns: preference"):
        load_config(run_of_answers, [f"outcome.classifier={folder}"])


@pytest.fixture
def run_of_answers(tmp_path, questions):
    """A configuration that learns from the answers of a finished run."""
    run = tmp_path / "run"
    write_choices(run / "grpo" / "verifier.1.grpo")
    (run / "questions").mkdir()
    (run / "questions" / "questions").symlink_to(questions)
    path = tmp_path / "outcome.yaml"
    path.write_text(f"name: outcome\nstages: [outcome_model]\noutcome: {{run: {run}}}\nwandb: disabled\n")
    return path


def spoil(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop(QUERY), f"1 tensors are missing: {QUERY}"),
        (lambda found: found[QUERY].__setitem__((0, 0), float("inf")), f"not finite: {QUERY} has 1 of 256"),
        (lambda found: found.update({QUERY: torch.zeros(3, 3)}), "no sequence classifier of transformers"),
    ],
)
def test_a_published_model_with_damaged_weights_is_refused_before_a_run_and_at_load(tmp_path, change, said):
    spoil(save_encoder(tmp_path), change)
    for read in (check_classifier, TextClassifier.load):
        with pytest.raises(UserError, match=re.escape(said)):
            read(tmp_path)


def test_damaged_files_of_a_published_model_are_one_line(tmp_path):
    sound = save_encoder(tmp_path / "sound")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        for number, content in enumerate((b"", b"[]", b"{", bytes(99))):
            folder = shutil.copytree(sound, tmp_path / f"{name}-{number}")
            (folder / name).write_bytes(content)
            assert str(folder) in refusal(check_classifier, folder)
