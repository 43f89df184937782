"""Does a teacher speak the student's language? Same tokens under the same numbers, same chats, pictures it can read."""

from __future__ import annotations

from pathlib import Path

from rl_lab.config.schema import RunConfig
from rl_lab.errors import UserError
from rl_lab.language.model import KINDS, check_language_model, load_chat_processor
from rl_lab.learning.checkpoint import check_named
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.conversion import vlm_processor
from rl_lab.model.presets import preset_config
from rl_lab.model.stored_config import read_config_file
from rl_lab.model.tokenizer import load_tokenizer


def check_teacher(config: RunConfig) -> None:
    """UserError, before anything runs, for a teacher whose tokens or chats are not the student's."""
    teacher, student = config.teacher.model.path, config.model.path
    if teacher is not None:
        _check_folder(Path(teacher))
    if teacher is not None or student is not None:
        where = "the lab's teacher" if teacher is None else f"teacher.model.path: {teacher}"
        check_same_text(_processor(student), _processor(teacher), where)
    size = len(load_tokenizer() if teacher is None else load_tokenizer(Path(teacher)))
    top_k = config.distill.top_k
    if top_k is not None and top_k > size:
        raise UserError(f"distill.top_k is {top_k} but the vocabulary has {size} tokens; leave it out for all of them")


def _processor(path: str | None) -> HunYuanVLMoTProcessor:
    """Of a checkpoint, or of the models that the lab makes."""
    return vlm_processor(preset_config("nano"), load_tokenizer()) if path is None else load_chat_processor(Path(path))


def _check_folder(folder: Path) -> None:
    """UserError unless this is a checkpoint that can read pictures and text."""
    where = "teacher.model.path"
    kind = check_named(where, folder, read_config_file).get("model_type")
    if kind not in KINDS:
        raise UserError(
            f"{where}: {folder} holds a model of type {kind!r}, not one of {', '.join(KINDS)}; give a vision-language "
            "model, or a policy around one"
        )
    check_named(where, folder, check_language_model)


def check_same_text(student: HunYuanVLMoTProcessor, teacher: HunYuanVLMoTProcessor, where: str) -> None:
    """UserError unless both have the same tokens under the same numbers, and write chats alike."""
    own, other = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if own != other:
        different = sorted(dict(own.items() ^ other.items()))
        raise UserError(
            f"{where} has another tokenizer than the student: {len(other)} tokens and {len(own)}, of which "
            f"{different[0]!r} and {len(different) - 1} more differ; distil between models with the same tokenizer"
        )
    if student.chat_template != teacher.chat_template:
        raise UserError(
            f"{where} has another chat template than the student, so it would read prompts it was not trained on; "
            "distil between models with the same chat template"
        )


def check_same_patches(student: HunYuanVLMoTProcessor, teacher: HunYuanVLMoTProcessor) -> None:
    """UserError where a teacher beside the student could not read the student's pictures."""
    sizes = [(made.image_processor.patch_size, made.image_processor.merge_size) for made in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the teacher cuts pictures into patches of {sizes[1][0]} pixels, {sizes[1][1]} x {sizes[1][1]} a token, "
            f"and the student {sizes[0][0]}, {sizes[0][1]} x {sizes[0][1]}; set distill.scored_by to engine, where "
            "each has its own pictures"
        )
