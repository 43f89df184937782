"""Settings of the action side: demonstrations, imitation, preference pairs, rounds of a method, and learned rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from algos.methods import Method, find_method
from algos.methods import Rows as MethodRows
from envs.by_name import OwnName, is_own
from envs.execution import Execution
from envs.options import (
    AnyNumber,
    AtLeastOne,
    ControlSteps,
    Fraction,
    Named,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rows,
)
from envs.rollback import RollbackConfig
from envs.types import Numbers
from rl_lab.config.section import OptimiserConfig, Section, VisionLossesConfig


class FilesConfig(Section):
    """Demonstrations that others recorded. Numbers are read once; images stay where they are."""

    paths: AtLeastOne[str]
    """Files or folders of RoboTwin's HDF5 episodes (both layouts), folders of a LeRobotDataset v3,
    or of Lance tables (UMI recordings)."""
    stride: ControlSteps = 1
    """Recorded steps between two commands of a chunk."""
    save_freq: ControlSteps = 15
    """Physics steps (1/250 s) a frame of RoboTwin's files; another number in a file is a problem of its episode."""
    instructions: Literal["seen", "unseen"] = "seen"
    """Which of RoboTwin's texts."""
    index: str | None = None
    """The authors' index of RoboTwin's episodes (dataset_index.csv): those that it calls dirty are left out."""
    numbers: Numbers = "ee"
    """What the states and commands of a LeRobotDataset are: ee (8 or 16 numbers), joints or raw (up to 32)."""
    cameras: AnyNumber[str] = ()
    """Its views in order, as the keys of their videos end; none for RoboTwin's three of ee, or for all of others."""
    skip_broken: bool = False
    """Leave broken episodes out, and list them, instead of stopping."""

    def reading(self) -> dict[str, Any]:
        """Arguments of `rl_lab.records.sources.find_recordings`."""
        return {
            "paths": [Path(path) for path in self.paths],
            "save_freq": self.save_freq,
            "split": self.instructions,
            "index": None if self.index is None else Path(self.index),
            "numbers": self.numbers,
            "cameras": self.cameras,
        }


class DemosConfig(Section):
    """Demonstrations: of the scripted expert, or from files."""

    episodes: PositiveInt = 25
    """Episodes of each task and variant, successful but in a mode that fails."""
    action_noise_m: NonNegativeFloat = 0.0
    """Standard deviation of the noise on executed positions, metres; labels stay clean."""
    modes: Named[str, Fraction] = {}
    """On the tabletop, the shares of demonstrations in which the expert acts in another way than its best, by name, see
    `envs.tabletop.MODES`: in a mode that fails those episodes are kept that fail, up to where that shows."""
    files: FilesConfig | None = None
    """Demonstrations that replace the expert's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.files is not None and (self.episodes, self.action_noise_m) != (25, 0.0):
            raise ValueError("episodes and action_noise_m are the expert's, but files replace it; leave them out")
        if self.files is not None and self.modes:
            raise ValueError("modes are the expert's, but files replace it; leave them out")
        if sum(self.modes.values()) > 1 + 1e-9:
            raise ValueError(
                f"modes: shares add up to {sum(self.modes.values()):g}; at most 1, the rest is the expert's own"
            )
        return self

    @property
    def by_mode(self) -> dict[str | None, int]:
        """Episodes of each task and variant by the expert's mode, None for its own; those without any are left out."""
        counts = {mode: round(share * self.episodes) for mode, share in self.modes.items()}
        whole: dict[str | None, int] = {None: max(0, self.episodes - sum(counts.values()))} | counts
        return {mode: count for mode, count in whole.items() if count}

    @property
    def stride(self) -> int:
        """Recorded steps between two commands of a chunk; an expert's every one."""
        return 1 if self.files is None else self.files.stride


class FlowConfig(OptimiserConfig):
    """Training of the flow-matching expert."""

    draws_per_sample: Rows = 4
    """(noise, time) draws for one observation: its prefix is computed once for all of them."""
    compile: bool = False
    """Make kernels of every layer with torch.compile, which takes a minute or more and saves time in every step.
    Other rounding, so it is part of the result; a run that is killed and resumed gives the same only up to rounding."""

    @model_validator(mode="after")
    def _compiled_sums_have_an_order(self) -> Self:
        if self.compile and self.threads > 1:
            raise ValueError(
                f"compile is true but threads is {self.threads}: compiled kernels add up what several threads found in "
                "any order, so no run could be repeated; set threads to 1, or leave compile out"
            )
        return self


class SFTConfig(VisionLossesConfig, FlowConfig):
    """Flow matching on the demonstrations, everything trainable."""

    steps: PositiveInt = 600
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100
    final_lr_fraction: Fraction = 0.05
    ema: Fraction = 0.995
    probe_weight: NonNegativeFloat = 1.0
    """Weight of the auxiliary loss on simulator ground truth, a stand-in for spatial pre-training; 0 for none."""
    augment: bool = False
    """Change images at random as Hy-VLA does (`algos.augmentation`)."""
    statistics: Literal["checkpoint", "data"] = "checkpoint"
    """What states and chunks are normalised with: the checkpoint's statistics if there are any for such chunks, else
    those of the demonstrations; or always the latter."""


class CorrectorConfig(Section):
    """Who shows the better continuation of a failure. In a file the name of a kind may stand alone."""

    kind: Literal["scripted_expert", "policy", "recorded", "own"] = "scripted_expert"
    """scripted_expert: the simulator's; RoboTwin's is planned anew for the restored state. policy: a teacher.
    recorded: corrections from a file or from another run's pairs. own: code of one's own."""
    path: str | None = None
    """Of a policy its checkpoint folder; of recorded corrections a file of JSON lines or a folder of pairs."""

    code: OwnName | None = None
    """Of own code its name, FILE.py:NAME or MODULE:NAME; the name may stand alone, too. See docs/correctors.md."""
    noise_m: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the scripted expert's positions, metres, which the pairs record as well."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str) and is_own(value):
            return {"kind": "own", "code": value}
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_its_path(self) -> Self:
        if (self.code is not None) != (self.kind == "own"):
            raise ValueError("corrector own, and no other, is code; write {kind: own, code: FILE.py:NAME}")
        if (self.path is not None) != (self.kind in ("policy", "recorded")):
            state = "needs a path" if self.path is None else "takes no path"
            raise ValueError(f"corrector {self.kind} {state}; write for example {{kind: policy, path: FOLDER}}")
        if self.noise_m and self.kind != "scripted_expert":
            raise ValueError(f"noise_m is the scripted expert's, but the corrector is {self.kind}; leave it out")
        return self


class CollectConfig(Section, RollbackConfig):
    """Preference pairs: the policy fails, the simulator is rolled back, the corrector shows how; in control steps."""

    pairs: PositiveInt = 60
    """Pairs of each round, over all tasks."""
    max_episodes: PositiveInt = 400
    """Episodes after which a round stops short of `pairs`."""
    corrector: CorrectorConfig = CorrectorConfig()
    """Who shows the better continuation."""
    swapped_share: Fraction = 0.0
    """Share of a round's pairs whose winner and loser are exchanged at random after collection, the correction cut to
    as many steps as the failure: label noise, for studies of it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pairs > self.max_episodes:
            raise ValueError(
                f"pairs is {self.pairs} but max_episodes is {self.max_episodes} and an episode gives at most one; "
                "raise max_episodes"
            )
        return self


class ExploreConfig(Section):
    """What policy gradients learn from, in the place of pairs: groups of episodes from the same start, with noise."""

    groups: PositiveInt = 16
    """Starts of each round, over all tasks and variants."""
    episodes: Annotated[Rows, Field(ge=2)] = 8
    """From each start; the success of one counts relative to that of the others."""
    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction."""
    denoising_steps: Annotated[int, Field(ge=2, le=1000)] = 5
    """Of each chunk while exploring, each a decision to learn from; fpo samples as in evaluation."""


class OptimiseConfig(FlowConfig):
    """One round of preference optimisation."""

    steps: PositiveInt = 1500
    batch_size: Rows = 64
    warmup: NonNegativeInt = 50
    train: AtLeastOne[Literal["vision", "vlm", "expert"]] = ("expert",)
    """Parameter groups; with `expert` alone the prefix is computed once for the whole round."""
    stored_prefix_gib: NonNegativeFloat = 8.0
    """Prefixes that stay the same in a round, of the policy or of the reference, are kept in CPU memory if all of them
    take at most so much, else each step computes its own: equal up to rounding, and slower."""


class ObjectiveConfig(Section):
    """Settings of a preference method or of a policy gradient; those that imitate have none, and ablations leave out a
    term."""

    variant_of: str | None = None
    """The method of our table whose settings these are, under a name of their own, to compare it with itself."""
    beta: PositiveFloat = 1.0
    """How strongly the loss prefers: eq. 7 of arXiv:2606.14409, where no value is given. Of fpo what flow losses, means
    over a chunk, are multiplied with to be like log-probabilities."""
    lambda_pro: NonNegativeFloat = 1.0
    """Weight of the preference loss; not in the paper."""
    lambda_sft: NonNegativeFloat = 1.0
    """Weight of imitation of the better chunk beside it; not in the paper."""
    reference: Literal["previous", "sft", "none"] = "previous"
    """Frozen policy of the implicit rewards: the previous round's or the one after SFT; none for own code alone."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of policy gradients: ratios are clipped beyond 1 - epsilon and 1 + epsilon."""
    noise: PositiveFloat = 0.3
    """Of flow_grpo: a of sigma_t = a sqrt(t / (1 - t))."""
    noise_bounds: tuple[PositiveFloat, PositiveFloat] = (0.05, 0.2)
    """Of reinflow: least and largest standard deviation of a denoising step, in those of the demonstrations."""
    code: OwnName | None = None
    """A class of one's own, FILE.py:CLASS or MODULE:CLASS; the entry's name is then that of a method of one's own."""
    rows: MethodRows = "tuples"
    """What own code learns from, beside demonstrations."""
    loser_states: PositiveInt | None = None
    """Of methods that learn from tuples: how many states of each loser are used, from the shared start on; null for
    all. rpro_no_interpolation uses the start alone."""
    settings: Named[str, bool | int | float | str] = {}
    """Arguments of own code, by name."""

    @model_validator(mode="after")
    def _has_one_meaning(self) -> Self:
        ours, own = {"beta", "lambda_pro", "lambda_sft", "epsilon", "noise", "noise_bounds"}, {"rows", "settings"}
        given = sorted(self.model_fields_set & (own if self.code is None else ours))
        changed = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        if changed and self.code is None:
            raise ValueError(f"{changed[0]} is for code of one's own; give code, or leave it out")
        if changed:
            raise ValueError(f"{changed[0]} is for our own methods; put it into settings")
        if taken := sorted({"groups", "draws_per_sample", "reference"} & self.settings.keys()):
            raise ValueError(f"settings.{taken[0]} is what the run gives; call yours otherwise")
        if self.code is not None and self.variant_of is not None:
            raise ValueError("variant_of is for our own methods; code is one by itself, leave it out")
        if self.code is not None and self.loser_states is not None and self.rows != "tuples":
            raise ValueError(f"loser_states are of tuples, but rows are {self.rows}; leave one out")
        if self.noise_bounds[0] > self.noise_bounds[1]:
            raise ValueError(f"noise_bounds are {list(self.noise_bounds)}; give the lower one first")
        if self.code is None and self.reference == "none":
            raise ValueError("reference is none, but our preference methods compare with one; choose previous or sft")
        return self

    def row(self, name: str) -> Method:
        """The method of this name, which has these settings. ValueError for an unknown one."""
        if self.code is None:
            method = find_method(self.variant_of or name)
        else:
            loss: Literal["imitation", "preference"] = "imitation" if self.reference == "none" else "preference"
            method = Method("an objective of one's own", self.code, rows=self.rows, loss=loss, code=self.code)
        is_open = method.rows == "tuples" and method.loser_states is None
        return replace(method, loser_states=self.loser_states) if is_open else method


class BuffersConfig(Section):
    """Shares of a batch. From the paper: 80/20, then 70/15/15 (arXiv:2606.14409, section 4.2)."""

    mix_first: tuple[Fraction, Fraction] = (0.8, 0.2)
    """Round 1: this round's pairs, demonstrations."""
    mix_later: tuple[Fraction, Fraction, Fraction] = (0.7, 0.15, 0.15)
    """Later rounds: this round's pairs, older pairs, demonstrations."""

    @field_validator("mix_first", "mix_later")
    @classmethod
    def _sums_to_one(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not abs(sum(shares) - 1) <= 1e-6:
            raise ValueError(f"shares {list(shares)} sum to {sum(shares):g}; they must sum to 1")
        return shares


class EvalConfig(Section, Execution):
    """Evaluation episodes; the same environment seeds for every policy, so that results can be paired."""

    episodes: PositiveInt = 100
    """Episodes of each task and variant."""
    seeds: Literal["held_out", "development"] = "held_out"
    """held_out is for reported numbers only; tune on development."""
    robotwin_seed: Annotated[int, Field(ge=0, le=20_000)] = 0
    """In RoboTwin, the `seed` of its own evaluation: episodes begin at environment seed 100000 (1 + this)."""
    instructions: Literal["seen", "unseen"] = "unseen"
    """Which half of the instruction templates; demonstrations and pairs use the seen ones."""


Learned = Literal["success", "progress", "world_model"]
"""Kinds of reward models that are trained; see `rewards.actions`."""

LEARNED: tuple[Learned, ...] = ("success", "progress", "world_model")

Ranker = Literal["success", "progress", "world_model", "deviation", "random"]
"""What chunks can be ranked by: a trained model, the distance to the expert, or chance (a control)."""


class RecordConfig(Section):
    """Episodes of the base policy, successes and failures with their pictures, that reward models learn from."""

    episodes: PositiveInt = 120
    """Over all tasks and variants."""
    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction; a picture is kept at each."""


class RewardModelsConfig(OptimiserConfig):
    """Training of each reward model."""

    kinds: AtLeastOne[Learned] = LEARNED
    """Which models are trained; `rewards.actions` has them."""
    members: Annotated[Rows, Field(ge=2)] = 2
    """Of each ensemble; where they disagree about two chunks, no preference is made."""
    latent: Rows = 64
    """Numbers that a picture is encoded in."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the recorded episodes that the card is measured on; as many others calibrate its probabilities."""
    demonstrations: bool = False
    """Learn from the demonstrations as well, which a policy that never succeeds needs."""
    steps: PositiveInt = 400
    """Each with `batch_size` rows for every member."""
    lr: PositiveFloat = 1e-3

    @model_validator(mode="after")
    def _learns_whole_batches(self) -> Self:
        if self.rows_at_once is not None:
            raise ValueError("rows_at_once: reward models of actions learn from whole batches; leave it out")
        return self


class CandidatesConfig(Section):
    """Chunks that the policy samples in states of its own episodes, each run in the simulator."""

    states: PositiveInt = 160
    """Over all tasks and variants."""
    states_per_episode: Rows = 4
    """States of one episode at most."""
    samples: Annotated[Rows, Field(ge=2)] = 5
    """Chunks of each state."""
    execute: ControlSteps = 4
    """Commands of each chunk that are run before the next prediction, except for the sampled one, which runs whole."""
    decisions: NonNegativeInt = 2
    """Predictions that follow the sampled chunk before models of pictures look at where it led."""


class RankingConfig(Section):
    """Preference pairs from the best and the worst chunk of a state, beside those of interventions."""

    weights: Named[Ranker, PositiveFloat] = {}
    """Rewards by which chunks are ranked, each in standard deviations within states; {} for no such pairs."""
    margin: NonNegativeFloat = 1.0
    """Smallest difference between the best and the worst, in the same unit, that makes a pair."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Part of the share of this round's pairs in a batch that ranked pairs get."""

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Reward models that it needs."""
        return tuple(kind for kind in LEARNED if kind in self.weights)

    def mix(self, shares: tuple[float, ...]) -> tuple[float, ...]:
        """Shares of a batch with those of ranked pairs behind them; as they are without any."""
        if not self.weights:
            return shares
        return (shares[0] * (1 - self.share), *shares[1:], shares[0] * self.share)


def check_rankings(config: Any) -> None:
    """ValueError unless every ranking of a run finds the reward models and the rounds that it needs."""
    if "reward_models" in config.stage_names and config.placement.ranks > 1:
        raise ValueError("reward_models: an ensemble learns in one process; set placement.learner.ranks to 1")
    if config.study is not None and config.study.rankings:
        return  # of its own in every world
    if "rank" not in config.stage_names:
        if config.ranking.weights:
            raise ValueError("ranking: nothing is ranked; add rank before optimise to the repeated stages")
        return
    learned = config.ranking.learned
    if not config.ranking.weights:
        raise ValueError("ranking.weights is empty; name a reward, or leave rank out of the repeated stages")
    if learned and "reward_models" not in config.stage_names:
        raise ValueError(f"ranking: {learned[0]} is a trained model; add reward_models to stages, after sft")
    for kind in learned:
        if kind not in config.reward_models.kinds:
            raise ValueError(f"ranking: {kind} is not among reward_models.kinds; add it there")
    if config.row(config.method).rows != "tuples":
        raise ValueError(f"ranking: {config.method} does not learn from single states; use a method such as rpro")
