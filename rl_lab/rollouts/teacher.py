"""A teacher in engines that reads a student's answers: what it finds likely at each of their tokens.

It must speak the student's language: same tokens under the same numbers, same chats, pictures it can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rl_lab.common.errors import UserError
from rl_lab.config.language import EngineConfig
from rl_lab.config.schema import RunConfig
from rl_lab.graph.stage import StageContext
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import (
    KINDS,
    check_language_model,
    check_named,
    load_chat_processor,
    published,
    vlm_processor,
)
from rl_lab.model.presets import preset_config
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.model.vlm_config import read_config_file
from rl_lab.records.types import Prompt, RolloutGroup, TopScores
from rl_lab.rollouts.answering import engine_options
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.engine import ScoreUnit
from rl_lab.workers.pool import WorkerPool

TOKENS, LOGPROBS = "teacher_tokens", "teacher_logprobs"
"""Columns of the rollout store: the teacher's top-k at every token of an answer, one after the other."""


class TeacherEngines:
    """Engines with the teacher's weights that read answers; see `rl_lab.training.online.TeacherReads`."""

    names: Sequence[str] = (TOKENS, LOGPROBS)

    def __init__(self, engines: WorkerPool, teacher: Path, top_k: int, prompts_per_call: int) -> None:
        self.engines, self.top_k, self.prompts_per_call = engines, top_k, prompts_per_call
        self.weights = ray.put(published(teacher))

    def columns(self, groups: Sequence[RolloutGroup], check_stop: Callable[[], None]) -> dict[str, list[Any]]:
        """What the teacher finds likely at each answer's tokens, for the store."""
        read = list(self._read(groups, check_stop))
        return {TOKENS: [row.tokens.ravel() for row in read], LOGPROBS: [row.logprobs.ravel() for row in read]}

    def _read(self, groups: Sequence[RolloutGroup], check_stop: Callable[[], None]) -> Iterator[TopScores]:
        """In the order of the answers; as many together as were answered together."""
        asked = [
            (Prompt(answer.prompt_tokens + answer.tokens, group.prompt.images), len(answer.tokens))
            for group in groups
            for answer in group.completions
        ]
        size = self.prompts_per_call * groups[0].size
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        units = [
            ScoreUnit(tuple(prompt for prompt, _ in part), tuple(number for _, number in part), self.top_k)
            for part in parts
        ]
        batch = self.engines.submit(lambda actor, unit: actor.score.remote(unit, self.weights), units)
        yield from chain.from_iterable(self.engines.results(batch, check_stop))

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[TopScores]:
        """What the store has of answers."""
        shape = (-1, self.top_k)
        return [
            TopScores(
                np.array(row[TOKENS], np.int32).reshape(shape), np.array(row[LOGPROBS], np.float32).reshape(shape)
            )
            for row in rows
        ]


@contextmanager
def teacher_engines(cluster: Cluster, context: StageContext, teacher: Path, top_k: int) -> Iterator[TeacherEngines]:
    """Engines beside the student's, set up for the teacher, until the stage ends."""
    engine: EngineConfig = context.config.engine
    # vLLM writes a token behind what it reads, so the longest answer needs room for one more.
    room = {"max_logprobs": max(20, top_k), "max_model_len": engine.max_model_len + 1}
    with cluster.teacher_pool(engine_options(engine, teacher, **room), context.say) as pool:
        yield TeacherEngines(pool, teacher, top_k, engine.prompts_per_call)


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
