"""Which teachers are refused, each with one line, before anything runs."""

import json
import shutil

import pytest

from rl_lab.common.errors import UserError
from rl_lab.model.chat import ImageProcessor
from rl_lab.model.checkpoint import load_chat_processor
from rl_lab.rollouts.teacher import check_same_patches, check_teacher
from rl_lab.stages.kinds import load_config

CONFIG = """
name: distillation
stages: [questions, cold_start, teacher, distill]
"""


@pytest.fixture
def config(tmp_path):
    """The configuration with overrides."""

    def load(*overrides):
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG)
        return load_config(path, overrides)

    return load


@pytest.fixture
def teacher(policy, tmp_path):
    """A checkpoint folder to be changed."""
    return shutil.copytree(policy, tmp_path / "teacher")


def test_a_checkpoint_with_the_same_tokens_and_chats_can_teach_and_is_not_trained(config, teacher):
    found = config(f"teacher.model.path={teacher}")
    check_teacher(found)
    assert found.teacher.training is None
    assert config().teacher.training is not None and config().teacher.model.preset == "small"


def test_another_tokenizer_is_refused(config, teacher):
    path = teacher / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[1000:1002]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"teacher.model.path: .* another tokenizer than the student: .* 1 more differ"):
        check_teacher(config(f"teacher.model.path={teacher}"))


def test_another_chat_template_is_refused(config, teacher):
    path = teacher / "chat_template.jinja"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="another chat template than the student"):
        check_teacher(config(f"teacher.model.path={teacher}"))


def test_a_folder_without_a_vision_language_model_is_refused(config, teacher):
    path = teacher / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    with pytest.raises(UserError, match="holds a model of type 'llama', not one of"):
        check_teacher(config(f"teacher.model.path={teacher}"))
    path.unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        check_teacher(config(f"teacher.model.path={teacher}"))


def test_a_top_k_beyond_the_vocabulary_is_refused(config):
    with pytest.raises(UserError, match=r"distill.top_k is 4000 but the vocabulary has 3584 tokens"):
        check_teacher(config("distill.top_k=4000"))


def test_a_teacher_beside_the_student_must_read_the_students_patches(policy):
    student, teacher = load_chat_processor(policy), load_chat_processor(policy)
    check_same_patches(student, teacher)
    teacher.image_processor = ImageProcessor(8, 2, 64, 4096)
    with pytest.raises(UserError, match="patches of 8 pixels, 2 x 2 a token, and the student 16"):
        check_same_patches(student, teacher)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.reward_weight=0.5"], "num_generations is 1; rewards are compared within the answers"),
        (["distill.scored_by=engine"], "set top_k"),
        (["distill.scored_by=engine", "distill.top_k=8", "distill.temperature=0.7"], "temperature 1 only"),
        (["distill.divergence=jsd", "distill.beta=1.0"], "beta is 1.0"),
        (["distill.tail=renormalise"], "without top_k there is no tail"),
        (["distill.steps=5"], "warmup is 5 but steps is 5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_while_loading(config, overrides, message):
    with pytest.raises(UserError, match=message):
        config(*overrides)
