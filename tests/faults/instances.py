"""Who reads which file of a valid instance, and what a damage of it may do but be refused."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults import valid_files as make

VALUES = ("missing key", "unknown key", "other type", "huge", "negative", "zero", "not finite", "odd text", "repeated")
SHOWN = dict.fromkeys(VALUES, "a report shows what it does not compute with as it stands")
GROWING = dict.fromkeys(
    ("missing", "empty", "cut", "torn"), "an interrupted run has fewer lines; a torn last one is none"
)
ABSENT = {"missing": "what an interrupted run lacks is absent"}
ANY = dict.fromkeys(("negative", "zero", "odd text", "huge"), "such a number or text may be meant")
DEFAULTED = {"missing key": "it has a default", "other type": "null and an empty section are defaults"}
PREFIX = {"cut": "the first keys of a file are a file"}
UNREAD = dict.fromkeys((*VALUES, "null", "not UTF-8", "no rows", "other shape"), "a command checks what it reads")
UNKNOWN = {"unknown key": "transformers takes any"}
SQLITE = {"torn": "SQLite checks what is read"}
BITS = {"torn": "some numbers are others, which no reader can know", "huge": "finite weights are weights"}


@dataclass(frozen=True)
class Reading:
    """A file and the commands that read it."""

    file: str
    """Relative to the instance's folder."""
    commands: tuple[str, ...]
    """What is typed behind `python -m rl_lab.`"""
    accepts: Mapping[str, str]
    """Kinds of damage that may end well in silence -> why."""
    leaves_out: bool = False
    """The commands go on without what is damaged, and name it."""
    names: tuple[str, ...] = ()
    """What a message may call the file instead of its name."""

    @property
    def form(self) -> str:
        """A name in `damage.FORMS`."""
        suffix = Path(self.file).suffix[1:]
        return {"jsonl": "lines", "py": "code", "txt": "text"}.get(suffix, suffix)


@dataclass(frozen=True)
class Instance:
    """A folder of files, and who reads which."""

    build: Callable[[Path], object]
    readings: tuple[Reading, ...]


def instance(build: Callable[[Path], object], *readings: Reading) -> Instance:
    """A folder and its readings."""
    return Instance(build, readings)


passing = partial(Reading, leaves_out=True)
"""A reading of commands that go on without what is damaged."""

GIVEN = "run given.yaml model.path=policy --dry-run"
POLICY = ("serve policy --port 0", "eval policy", "correct policy small.yaml --out c.jsonl --port 0", GIVEN)
SERVE = POLICY[:1]
FROM_VLM = ("run language.yaml model.path=vlm --dry-run",)
LANGUAGE = ("run language.yaml --dry-run",)
DATA = ("inspect", "stats", "validate", "convert")
FROM_SET = "run small.yaml demos.files.paths=[set] sft.probe_weight=0 --dry-run"
RECORDED = "run small.yaml collect.corrector={{kind:\\ recorded,path:\\ {}}} --dry-run"
RECORDED_PAIRS = (RECORDED.format("pairs"),)
RESUME, REPORT = ("resume --resume run",), ("report run",)
SHORT, RANDOM = ("rescore run --reward short",), ("rescore run --reward random",)
SUCCESS, MINE = ("rescore run --reward success",), ("rescore run --reward mine.yaml",)
EPISODES = {"missing": "a folder has as many episodes as there are"}
LAB = ANY | DEFAULTED | {"missing": "released checkpoints have none"}
OPEN = ANY | DEFAULTED | UNKNOWN
SET = ("set, episode", "episodes of set", "meta/episodes")
CLASSIC, TRAJECTORY = "classic/handover_block/demo_clean", "trajectory/demo_clean/handover_block/aloha_agilex"


def data(source: str, *verbs: str) -> tuple[str, ...]:
    """The data commands on a source."""
    small = " --image-size 32" if source in ("classic", "trajectory") else ""
    return tuple(f"data {verb} {source}{' out' if verb == 'convert' else ''}{small}" for verb in verbs or DATA)


def asks(file: str, kind: str = "train") -> tuple[str, ...]:
    """A run that reads a file of questions."""
    return (f"run language.yaml questions.{kind}_file={file} --dry-run",)


INSTANCES: dict[str, Instance] = {
    "policy": instance(
        make.policy,
        Reading("policy/config.json", POLICY, OPEN),
        Reading("policy/lab.json", POLICY, LAB),
        Reading("policy/model.safetensors", POLICY, BITS),
        Reading("policy/norm_stats.safetensors", POLICY, BITS),
        Reading("policy/tokenizer.json", SERVE, OPEN),
        Reading("policy/tokenizer_config.json", SERVE, OPEN),
    ),
    "sharded": instance(
        make.sharded,
        Reading(
            "policy/model.safetensors.index.json",
            (POLICY[0], GIVEN),
            ANY | UNKNOWN | {"missing key": "shards say what they hold"},
        ),
        Reading("policy/model-00001-of-00003.safetensors", SERVE, BITS),
    ),
    "language model": instance(
        make.language_model,
        Reading("vlm/config.json", FROM_VLM, OPEN),
        Reading("vlm/lab.json", FROM_VLM, LAB),
        Reading("vlm/model.safetensors", FROM_VLM, BITS),
        Reading("vlm/tokenizer.json", FROM_VLM, OPEN),
        Reading("vlm/preprocessor_config.json", FROM_VLM, OPEN),
    ),
    "experiment": instance(
        make.policy,
        Reading(
            "small.yaml",
            ("run small.yaml --dry-run", "doctor small.yaml", "eval policy small.yaml"),
            ANY | DEFAULTED | PREFIX,
        ),
        Reading("language.yaml", LANGUAGE, ANY | DEFAULTED | PREFIX, names=("rewards.",)),
        Reading("mine.py", LANGUAGE, ANY),
    ),
    "corrections": instance(
        make.corrections,
        Reading(
            "corrections.jsonl",
            ("correct policy small.yaml --out corrections.jsonl --port 0", RECORDED.format("corrections.jsonl")),
            ANY | GROWING,
        ),
        Reading("pairs/index.jsonl", RECORDED_PAIRS, UNREAD | ANY),
        Reading("pairs/pair-0000.npz", RECORDED_PAIRS, BITS | UNREAD),
    ),
    "robotwin": instance(
        make.robotwin,
        Reading(f"{CLASSIC}/data/episode0.hdf5", data("classic"), BITS | UNREAD | EPISODES),
        Reading(f"{CLASSIC}/instructions/episode0.json", data("classic", "validate"), UNREAD),
        Reading(
            f"{CLASSIC}/seed.txt",
            data("classic", "validate"),
            UNREAD | PREFIX | {"missing": "a folder may have none", "empty": "the same"},
        ),
        Reading(f"{TRAJECTORY}/data/episode_0000000.hdf5", data("trajectory"), BITS | UNREAD | EPISODES),
    ),
    "lerobot": instance(
        make.lerobot,
        Reading("set/meta/info.json", (*data("set"), FROM_SET), UNREAD, names=SET),
        Reading("set/meta/episodes/chunk-000/file-000.parquet", (*data("set"), FROM_SET), UNREAD, names=SET),
        Reading("set/meta/tasks.parquet", data("set", "inspect", "validate"), UNREAD, names=SET),
        Reading("set/data/chunk-000/file-000.parquet", data("set"), UNREAD, names=SET),
    ),
    "lab data": instance(
        make.lab_data,
        Reading("episodes/index.jsonl", data("episodes"), UNREAD | GROWING),
        Reading("episodes/episode-0000.npz", data("episodes"), BITS | UNREAD),
        Reading("pairs/index.jsonl", data("pairs"), UNREAD | ANY),
        Reading("pairs/pair-0000.npz", data("pairs"), BITS | UNREAD),
    ),
    "questions": instance(
        make.questions,
        Reading("questions.jsonl", asks("questions.jsonl"), ANY | DEFAULTED),
        Reading("questions.parquet", asks("questions.parquet"), ANY | DEFAULTED),
        Reading(
            "questions/data-00000-of-00001.arrow",
            asks("questions"),
            ANY | DEFAULTED | {"null": "what is null in a table's row is absent there, such as an id"},
        ),
        Reading("questions/dataset_info.json", asks("questions"), UNREAD | ANY),
        Reading("questions/state.json", asks("questions"), UNREAD | ANY),
        Reading("talks.jsonl", asks("talks.jsonl", "cold_start"), UNREAD | ANY),
    ),
    "resumed run": instance(
        make.resumed,
        passing("run/config.yaml", RESUME, SHOWN | PREFIX),
        passing("run/stages.json", RESUME, SHOWN | ABSENT),
        passing("run/metrics.jsonl", RESUME, SHOWN | GROWING),
        passing("run/environment.json", RESUME, SHOWN | ABSENT),
        passing("sft/stage.json", RESUME, UNREAD),
        passing("sft/metrics.jsonl", RESUME, SHOWN | GROWING),
    ),
    "report": instance(
        make.reports,
        passing("run/config.yaml", REPORT, SHOWN | PREFIX),
        passing("run/environment.json", REPORT, SHOWN | ABSENT),
        passing("run/stages.json", REPORT, SHOWN | ABSENT),
        passing("run/metrics.jsonl", REPORT, SHOWN | GROWING),
        passing(
            "run/episodes/rpro.1.evaluate/results.jsonl", ("report run", "report other --against run"), SHOWN | GROWING
        ),
        passing("run/pairs/rpro.1.collect/index.jsonl", REPORT, SHOWN | GROWING),
        passing("run/pairs/rpro.1.collect/pair-0000.npz", REPORT, SHOWN | BITS),
        passing("run/pairs/rpro.1.collect/collection.json", REPORT, SHOWN | ABSENT),
        passing("run/videos/rescued/index.jsonl", REPORT, SHOWN | GROWING),
    ),
    "language report": instance(
        make.language_reports,
        passing("run/stages.json", REPORT, SHOWN | ABSENT),
        passing("run/metrics.jsonl", REPORT, SHOWN | GROWING),
        passing("run/examinations/frontier.1.examine/results.jsonl", REPORT, SHOWN | GROWING),
        passing("run/grpo/frontier.1.grpo/held_out.jsonl", REPORT, SHOWN | GROWING),
        passing("run/grpo/frontier.1.grpo/rollouts/step-00000005.parquet", REPORT, UNREAD | ABSENT),
        passing("run/grpo/frontier.1.grpo/pool.sqlite", REPORT, UNREAD | SQLITE),
    ),
    "pool": instance(
        make.pool,
        Reading(
            "run/pool.sqlite",
            (
                *("pool ls run", "pool show run counting-001", "pool hist run", "pool why run counting-001@2"),
                *("pool export run out.jsonl", "pool html run", "pool diff run run@4", "pool pin run counting-001"),
            ),
            UNREAD | SQLITE,
        ),
        Reading("run/checkpoints/step-4/pool.sqlite", ("pool diff run run@4",), UNREAD | SQLITE),
        passing("run/rollouts/step-00000003.parquet", ("pool show run counting-001", "pool html run"), UNREAD | ABSENT),
        passing(
            "traces/rollouts/step-00000001.parquet", ("pool show traces 3", "pool why traces 3@1"), UNREAD | ABSENT
        ),
    ),
    "answers": instance(
        make.answers,
        passing("run/config.yaml", SHORT, SHOWN | PREFIX, names=("--reward short",)),
        Reading("run/questions/given.1.questions/train.arrow", SHORT, UNREAD, names=("the run's questions",)),
        Reading("run/grpo/given.1.verifier.1.grpo/rollouts/step-00000001.parquet", SHORT, UNREAD),
        Reading("mine.yaml", MINE, ANY),
        Reading("mine.py", MINE, ANY),
    ),
    "chunks": instance(
        make.chunks,
        passing("run/config.yaml", RANDOM, SHOWN | PREFIX, names=("ranking.", "--reward random")),
        passing("run/stages.json", RANDOM, SHOWN | ABSENT),
        Reading("run/candidates/given.1.deviation.1.candidates/index.jsonl", RANDOM, UNREAD | GROWING),
        Reading("run/candidates/given.1.deviation.1.candidates/state-0000.npz", RANDOM, UNREAD | BITS),
        Reading("run/episodes/given.1.reward.episodes/index.jsonl", SUCCESS, UNREAD | GROWING),
        Reading("run/episodes/given.1.reward.episodes/episode-0000.npz", SUCCESS, UNREAD | BITS),
    ),
}


def copy(built: Path, folder: Path) -> Path:
    """A copy of a built instance that may be damaged; links stay links."""
    return Path(shutil.copytree(built, folder, symlinks=True))
