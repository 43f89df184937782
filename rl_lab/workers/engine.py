"""Language rollouts: a vLLM engine in an actor of its own, a fixed batch of prompts with images in, completions out.

Every completion says which weights made it. New weights are copied into the running engine; their bytes are checked
against the publisher's checksum, and nothing that was computed with the old ones is used again.

A unit's completions depend on its prompts, its sampling and the weights, and on nothing else: the batch is what the
engine computes together, every prompt has its seed, and the engine's caches are emptied before each unit. On CPU that
holds to the bit, whichever worker answers, whatever it did before and however it came by the weights.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import safetensors.torch
from torch import Tensor

from rl_lab.common.errors import UserError
from rl_lab.model.checkpoint import Snapshot, pull, read_info, verify
from rl_lab.model.vllm_plugin import register
from rl_lab.records.types import Completion, Prompt, Sampling, TopScores
from rl_lab.workers.pool import BrokenWorkerError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""What the engine's process needs before vLLM is imported: engine and model in this process, nobody told, no
compilation of the sampler (12 s for nothing), and torch's groups, of this process alone, off the network."""

GPU_MEMORY_UTILIZATION = 0.05
"""The cache has its own size, so all that this does is to refuse a GPU with less than this share free; by default vLLM
would refuse one that a learner works on as well."""

CPU_BLOCK_SIZE = 32
"""Tokens of a cache block on a CPU; the least that its kernels like, so that short prompts share prefixes."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is set up; the names are vLLM's where it has them."""

    dtype: str = "auto"
    max_model_len: int = 2048
    """Tokens of a prompt, images included, and its answer."""
    max_num_seqs: int = 64
    """Answers that are written at the same time; others wait."""
    max_num_batched_tokens: int | None = None
    images_per_prompt: int = 8
    kv_cache_gib: float = 1.0
    seed: int = 0
    """Of samples whose prompt has no seed."""
    max_logprobs: int = 20
    """Most likely tokens that `score` can say at a place."""
    model: str = ""
    """Digest of the model's sizes (config.json), which an engine has for life: a pool with others starts anew."""


def load_vllm() -> Any:
    """The module `vllm`; UserError, naming the command that installs it, where it is missing or its other flavour."""
    os.environ.update(ENVIRONMENT)
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            f"language rollouts need vLLM ({error}); install it with ./setup.sh cpu, or ./setup.sh gpu for CUDA"
        ) from error
    if not current_platform.device_type:
        raise UserError("vLLM for CUDA finds no GPU here; delete .venv and install the other flavour: ./setup.sh cpu")
    register()  # vLLM finds the plugin by itself only where the lab is installed
    return vllm


def one_token_per_image(tokens: Sequence[int], image: int, row_end: int) -> list[int]:
    """Token ids with every stretch of an image's rows replaced by one image token."""
    kept: list[int] = []
    inside = False
    for token in tokens:
        if not inside or token not in (image, row_end):
            inside = token == image
            kept.append(token)
    return kept


class RolloutEngine:
    """The work of one rollout process: holds an engine, samples, takes new weights.

    One at a time in a process: what vLLM sets up for an engine belongs to the process and ends with any of them.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        """Start with a checkpoint folder of a VLM or of a policy. UserError without vLLM."""
        vllm = load_vllm()
        from vllm.platforms import current_platform

        self.weight_version = read_info(folder).weight_version
        self._sampling_params = vllm.SamplingParams
        self._llm = vllm.LLM(
            str(folder),
            dtype=options.dtype,
            seed=options.seed,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            limit_mm_per_prompt={"image": options.images_per_prompt},
            kv_cache_memory_bytes=int(options.kv_cache_gib * 2**30),
            gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
            block_size=CPU_BLOCK_SIZE if current_platform.is_cpu() else None,
            enable_prefix_caching=True,
            enforce_eager=True,
            logprobs_mode="processed_logprobs",
            max_logprobs=options.max_logprobs,
        )
        self._ids, self._shapes = self._llm.apply_model(_ids_and_shapes)[0]

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, options: EngineOptions) -> Self:
        """Start with published weights."""
        with tempfile.TemporaryDirectory() as folder:  # a process that is killed later leaves nothing behind
            engine = cls(pull(snapshot, Path(folder)), options)
        engine.weight_version = snapshot.version
        return engine

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`num_generations` completions of each prompt. ValueError for a prompt whose images do not fit its tokens.

        RuntimeError after a call that failed within the engine: requests are left in it, so start another one.
        """
        inputs = [self._input(prompt) for prompt in prompts]
        settings = [self._settings(sampling, prompt.seed) for prompt in prompts]
        answers = self._ask(inputs, settings)
        return [[self._completion(answer, output) for output in answer.outputs] for answer in answers]

    def score(self, prompts: Sequence[Prompt], num_tokens: Sequence[int], top_k: int) -> list[TopScores]:
        """The `top_k` most likely tokens at the last `num_tokens` of each prompt, an answer that somebody else wrote.

        As the model itself has them: without temperature, and with the tokens that stand for patches. Errors as
        `generate`; there must be room for one more token behind each prompt.
        """
        inputs = [self._input(prompt) for prompt in prompts]
        settings = self._sampling_params(max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False)
        outputs = zip(self._ask(inputs, settings), num_tokens, strict=True)
        return [_top_scores(output.prompt_logprobs[-number:], top_k) for output, number in outputs]

    def _ask(self, inputs: list[dict[str, Any]], settings: Any) -> list[Any]:
        """What vLLM answers. RuntimeError after a call that failed."""
        if self.has_failed:
            raise RuntimeError("the engine failed in an earlier call and still holds its requests; start another one")
        return self._llm.generate(inputs, settings, use_tqdm=False)

    @property
    def has_failed(self) -> bool:
        """A call failed within the engine: requests are left in it, and it answers no more."""
        return self._llm.llm_engine.has_unfinished_requests()

    def _input(self, prompt: Prompt) -> dict[str, Any]:
        tokens = one_token_per_image(prompt.tokens, self._ids["image"], self._ids["row_end"])
        places = tokens.count(self._ids["image"])
        if places != len(prompt.images):
            raise ValueError(f"the prompt has {places} image tokens but {len(prompt.images)} images; give one for each")
        images = {"multi_modal_data": {"image": list(prompt.images)}} if places else {}
        return {"prompt_token_ids": tokens, **images}

    def _settings(self, sampling: Sampling, seed: int | None) -> Any:
        return self._sampling_params(
            n=sampling.num_generations,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            ignore_eos=sampling.ignore_eos,
            seed=seed,
            logprobs=0,
            detokenize=False,
            # A patch token without an image could not be read back; -100 is the most that vLLM takes.
            logit_bias={self._ids[role]: -100.0 for role in ("image", "video")},
        )

    def _completion(self, answer: Any, output: Any) -> Completion:
        tokens = tuple(output.token_ids)
        return Completion(
            prompt_tokens=tuple(answer.prompt_token_ids),
            tokens=tokens,
            logprobs=tuple(known[token].logprob for known, token in zip(output.logprobs, tokens, strict=True)),
            weight_version=self.weight_version,
            finished=output.finish_reason == "stop",
            num_cached_tokens=answer.num_cached_tokens or 0,
        )

    def update(self, snapshot: Snapshot) -> float:
        """Copy published weights into the engine; seconds it took.

        RuntimeError if the snapshot arrived damaged, ValueError, listing the tensors, if it does not fit the model; the
        engine then goes on with the weights it has.
        """
        from rl_lab.model.loading import check_fit
        from rl_lab.model.serving.model import TIED, load_weights, served_shapes

        start = time.perf_counter()
        verify(snapshot)
        tensors = snapshot_tensors(snapshot.files)
        check_fit(served_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}), self._shapes, TIED)
        self._llm.apply_model(lambda model: load_weights(model, tensors.items()))
        self.reset_caches()
        self.weight_version = snapshot.version
        return time.perf_counter() - start

    def reset_caches(self) -> None:
        """Forget keys and values, image embeddings, and the processed images whose embeddings those were."""
        assert self._llm.reset_prefix_cache(), "caches cannot be reset while requests run"
        self._llm.llm_engine.engine_core.reset_encoder_cache()
        self._llm.reset_mm_cache()


def _top_scores(places: Sequence[Mapping[int, Any]], top_k: int) -> TopScores:
    """Of vLLM's log-probabilities by token, which hold the token that stands there as well."""
    ranked = [sorted(known.items(), key=lambda entry: entry[1].rank)[:top_k] for known in places]
    return TopScores(
        np.array([[token for token, _ in row] for row in ranked], np.int32),
        np.array([[entry.logprob for _, entry in row] for row in ranked], np.float32),
    )


def snapshot_tensors(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """All tensors of a snapshot's safetensors files; ValueError if it has none."""
    tensors: dict[str, Tensor] = {}
    for name, content in files.items():
        if name.startswith("model") and name.endswith(".safetensors"):
            tensors |= safetensors.torch.load(content)
    if not tensors:
        raise ValueError(f"the snapshot holds no weights (model*.safetensors), only {', '.join(sorted(files))}")
    return tensors


def _ids_and_shapes(model: Any) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Special token ids of the served model and the shapes of its weights."""
    from rl_lab.model.serving.model import expected_shapes

    return model.ids, expected_shapes(model)


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RolloutUnit:
    """Prompts that are answered together. The batch is part of a result's bits, so its size is no worker's business."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling


@dataclass(frozen=True)
class ScoreUnit:
    """Prompts with answers behind them that are read together, as fixed as a `RolloutUnit`."""

    prompts: tuple[Prompt, ...]
    num_tokens: tuple[int, ...]
    """Of each answer."""
    top_k: int


@dataclass(frozen=True)
class Generated:
    """The answers to a unit, and what they took."""

    completions: list[list[Completion]]
    """`num_generations` for each prompt, in the order of the prompts."""
    generate_s: float
    update_s: float
    """Copying new weights into the engine; 0 where it had them."""
    start_s: float
    """Starting the engine; 0 but for the first unit of a worker."""

    @property
    def busy_s(self) -> float:
        """Seconds in which the worker was not idle."""
        return self.generate_s + self.update_s + self.start_s


class Rollouter:
    """The actor. It holds an engine with the weights it was asked for last, and nothing that matters."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._engine: RolloutEngine | None = None
        self._weights: tuple[int, str] | None = None

    def generate(self, unit: RolloutUnit, snapshot: Snapshot) -> Generated:
        """Answer a unit with these weights: start an engine with them, or copy them into it where they are new.

        UserError without vLLM. ValueError for prompts that cannot be answered and for weights that do not fit,
        RuntimeError for weights that arrived damaged, BrokenWorkerError where the engine failed and is of no more use.
        """
        if unit.sampling.temperature > 0 and any(prompt.seed is None for prompt in unit.prompts):
            raise ValueError("a prompt has no seed; without one its answers would depend on the worker")
        began = time.perf_counter()
        engine = self._start(snapshot)
        started = time.perf_counter()
        self._update(engine, snapshot)
        updated = time.perf_counter()
        completions = self._call(engine, lambda: engine.generate(unit.prompts, unit.sampling))
        generated = time.perf_counter()
        return Generated(completions, generated - updated, updated - started, started - began)

    def score(self, unit: ScoreUnit, snapshot: Snapshot) -> list[TopScores]:
        """What these weights find likely at the tokens of answers; errors as `generate`."""
        engine = self._start(snapshot)
        self._update(engine, snapshot)
        return self._call(engine, lambda: engine.score(unit.prompts, unit.num_tokens, unit.top_k))

    def _start(self, snapshot: Snapshot) -> RolloutEngine:
        if self._engine is None:
            self._engine = RolloutEngine.from_snapshot(snapshot, self._options)
            self._weights = snapshot.version, snapshot.digest
        return self._engine

    def _update(self, engine: RolloutEngine, snapshot: Snapshot) -> None:
        if self._weights != (snapshot.version, snapshot.digest):
            engine.update(snapshot)
            self._weights = snapshot.version, snapshot.digest

    def _call(self, engine: RolloutEngine, call: Callable[[], Answer]) -> Answer:
        """The engine's answer with nothing left of calls before."""
        try:
            engine.reset_caches()
            return call()
        except Exception as error:
            if engine.has_failed:
                raise BrokenWorkerError(f"has an engine that failed ({error})") from error
            # vLLM's own classes could not be read where it is not installed.
            raise ValueError(str(error)) from error
