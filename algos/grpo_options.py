"""Options of GRPO under the names, meanings and defaults of TRL 1.16's `GRPOConfig`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo")
SCALES = ("group", "batch", "none")
LEVELS = ("token", "sequence")
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

UNSUPPORTED = {
    "entropy_coef": "there is no entropy bonus",
    "use_adaptive_entropy": "there is no entropy bonus",
    "top_entropy_quantile": "all tokens are trained",
    "off_policy_mask_threshold": "rows are masked by vllm_importance_sampling_mode only",
    "multi_objective_aggregation": "rewards are summed by their weights before they are normalised",
    "sync_ref_model": "the reference stays as it is",
    "router_aux_loss_coef": "the model has no router",
    "top_p": "a truncated distribution cannot be recomputed by the trainer, so log-probabilities would not match",
    "top_k": "a truncated distribution cannot be recomputed by the trainer, so log-probabilities would not match",
    "min_p": "a truncated distribution cannot be recomputed by the trainer, so log-probabilities would not match",
    "repetition_penalty": "the trainer could not recompute the log-probabilities",
    "vllm_importance_sampling_cap": "it is TRL's old name of vllm_importance_sampling_clip_max; use that",
}
"""Options of TRL's that change the loss or the sampling and that are not implemented -> why, or what to do."""


@dataclass(frozen=True)
class GRPOOptions:
    """Defaults are TRL's. ValueError for what cannot work, naming the option."""

    num_generations: int = 8
    """Answers G to each prompt."""
    temperature: float = 1.0
    """Of sampling; log-probabilities are those of logits / temperature."""
    max_completion_length: int = 512
    """Tokens of an answer at most; `dr_grpo` divides by it."""
    num_iterations: int = 1
    """Optimizer steps on each batch; above 1 `GRPO.prepare` must see the batch before the first."""
    scale_rewards: str = "group"
    """What divides the centred rewards: standard deviation of the group, of the batch, or nothing."""
    loss_type: str = "dapo"
    """How token losses become one number; see `algos.grpo.aggregate`."""
    epsilon: float = 0.2
    """The ratio is clipped below 1 - epsilon; with `num_iterations` 1 it is 1, and no clip acts."""
    epsilon_high: float | None = None
    """The ratio is clipped above 1 + epsilon_high; None: epsilon."""
    delta: float | None = None
    """Bound on the unclipped ratio of the surrogate (arXiv:2505.07291); None: none."""
    importance_sampling_level: str = "token"
    """Ratio of each token, or one for a row: the geometric mean of its tokens'. GSPO (arXiv:2507.18071) is "sequence"
    with loss_type grpo; other loss types then weigh a row by its tokens."""
    beta: float = 0.0
    """Weight of the KL term; 0: none, and no reference."""
    use_bias_correction_kl: bool = True
    """Weigh the KL term by the ratio (DeepSeek-V3.2, arXiv:2512.02556)."""
    mask_truncated_completions: bool = False
    """Leave answers that hit the length limit out of the loss."""
    vllm_importance_sampling_correction: bool = True
    """Weigh by the ratio of trainer to engine, which draw with slightly different probabilities."""
    vllm_importance_sampling_mode: str = "sequence_mask"
    """That ratio of tokens or of rows; outside the bounds it becomes the bound (truncate) or 0 (mask)."""
    vllm_importance_sampling_clip_max: float | None = 3.0
    vllm_importance_sampling_clip_min: float | None = None

    @property
    def idle_clip(self) -> str | None:
        """Name of a clip that was chosen and cannot act, because every batch is learned from once, with ratios of 1."""
        clips = (item for item in fields(self) if item.name in ("epsilon", "epsilon_high", "delta"))
        chosen = (item.name for item in clips if getattr(self, item.name) != item.default)
        return next(chosen, None) if self.num_iterations == 1 else None

    @property
    def ratio_bounds(self) -> tuple[float, float]:
        """(1 - epsilon, 1 + epsilon_high)."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def __post_init__(self) -> None:
        problem = next(self._problems(), None)
        if problem:
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        """What is wrong, one line each."""
        for name, known in (
            ("loss_type", LOSS_TYPES),
            ("scale_rewards", SCALES),
            ("importance_sampling_level", LEVELS),
            ("vllm_importance_sampling_mode", CORRECTIONS),
        ):
            if getattr(self, name) not in known:
                yield f"{name} {getattr(self, name)!r} is not supported; choose one of {', '.join(known)}"
        for name, least in (("num_generations", 2), ("max_completion_length", 1), ("num_iterations", 1)):
            if getattr(self, name) < least:
                yield f"{name} is {getattr(self, name)}; it must be at least {least}"
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            yield f"temperature is {self.temperature}; it must be a positive number"
        if not (math.isfinite(self.beta) and self.beta >= 0):
            yield f"beta is {self.beta}; it must be a number of at least 0"
        low, high = self.ratio_bounds
        if not 0 <= low <= 1 <= high < math.inf:
            yield f"ratios would be clipped to [{low}, {high}]; use 0 <= epsilon <= 1 and epsilon_high >= 0"
        if self.delta is not None and not self.delta > high:
            yield f"delta is {self.delta}; it must exceed 1 + epsilon_high = {high}, or be left out"
        least_weight, most_weight = self.importance_bounds
        if not 0 <= least_weight <= most_weight:
            yield (
                f"vllm_importance_sampling_clip_min is {least_weight} and _clip_max {most_weight}; "
                "the first must be at least 0 and not exceed the second"
            )

    @property
    def importance_bounds(self) -> tuple[float, float]:
        """Bounds of the importance weights, 0 and infinity where there is none."""
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        return 0.0 if low is None else low, math.inf if high is None else high


def known_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under TRL's names, `scale_rewards` as a name where it was true or false, as there.

    ValueError for an option that is not implemented, saying so, and for an unknown one, naming the nearest.
    """
    known = [item.name for item in fields(GRPOOptions)]
    for name in values:
        if name in UNSUPPORTED:
            raise ValueError(f"{name} is not supported: {UNSUPPORTED[name]}; remove it")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise ValueError(f"there is no GRPO option {name!r}; {hint}")
    scale = values.get("scale_rewards")
    return {**values} | ({"scale_rewards": "group" if scale else "none"} if isinstance(scale, bool) else {})


def grpo_options(values: Mapping[str, Any]) -> GRPOOptions:
    """Options from TRL's names; ValueError as `known_options`, and for what cannot work."""
    return GRPOOptions(**known_options(values))


PAPER = GRPOOptions(
    num_generations=16, epsilon=0.2, epsilon_high=0.35, beta=0.0, loss_type="dapo", max_completion_length=16384
)
"""HY-Embodied-0.5 (arXiv:2604.07430, RL stage): G = 16, ratio clip [0.8, 1.35], no KL, and at a learning rate of 8e-7.

The paper's loss is the mean over the tokens of a group, which is `dapo` as its own paper writes it (arXiv:2503.14476,
eq. 8). TRL's `dapo`, and so this one, pools the tokens of all groups of a step, so that a group counts by its tokens;
`bnpo` with one group in each part of an accumulated batch gives every group the same weight.
"""
