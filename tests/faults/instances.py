"""Who reads which file of a valid instance, and what a damage of it may do but be refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
BITS = {"torn": "some numbers are others, which no reader can know", "huge": "finite weights are weights"}


@dataclass(frozen=True)
class Reading:
    """A file and the commands that read it."""

    file: str
    """Relative to the instance's folder."""
    form: str
    """A name in `damage.FORMS`."""
    commands: tuple[str, ...]
    """What is typed behind `python -m rl_lab.`"""
    accepts: Mapping[str, str] = field(default_factory=dict)
    """Kinds of damage that may end well in silence -> why."""
    leaves_out: bool = False
    """The commands go on without what is damaged, and name it."""
    names: tuple[str, ...] = ()
    """What a message may call the file instead of its name."""


@dataclass(frozen=True)
class Instance:
    """A folder of files, and who reads which."""

    build: Callable[[Path], object]
    readings: tuple[Reading, ...]


GIVEN = "run given.yaml model.path=policy --dry-run"
POLICY = ("serve policy --port 0", "eval policy", "correct policy small.yaml --out c.jsonl --port 0", GIVEN)
FROM_VLM = "run language.yaml model.path=vlm --dry-run"
DATA = ("inspect", "stats", "validate", "convert")


def data(source: str, *verbs: str) -> tuple[str, ...]:
    """The data commands on a source."""
    small = " --image-size 32" if source in ("classic", "trajectory") else ""
    return tuple(f"data {verb} {source}{' out' if verb == 'convert' else ''}{small}" for verb in verbs or DATA)


def asks(file: str) -> tuple[str, ...]:
    """A run that reads a file of questions."""
    return (f"run language.yaml questions.train_file={file} --dry-run",)


INSTANCES: dict[str, Instance] = {
    "policy": Instance(
        make.policy,
        (
            Reading(
                "policy/config.json",
                "json",
                POLICY,
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
            Reading(
                "policy/lab.json",
                "json",
                POLICY,
                accepts=ANY | DEFAULTED | {"missing": "released checkpoints have none"},
            ),
            Reading("policy/model.safetensors", "safetensors", POLICY, accepts=BITS),
            Reading("policy/norm_stats.safetensors", "safetensors", POLICY, accepts=BITS),
            Reading(
                "policy/tokenizer.json",
                "json",
                POLICY[:1],
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
            Reading(
                "policy/tokenizer_config.json",
                "json",
                POLICY[:1],
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
        ),
    ),
    "sharded": Instance(
        make.sharded,
        (
            Reading(
                "policy/model.safetensors.index.json",
                "json",
                POLICY[:1] + POLICY[3:],
                accepts=ANY | {"unknown key": "transformers takes any", "missing key": "shards say what they hold"},
            ),
            Reading("policy/model-00001-of-00003.safetensors", "safetensors", POLICY[:1], accepts=BITS),
        ),
    ),
    "language model": Instance(
        make.language_model,
        (
            Reading(
                "vlm/config.json",
                "json",
                (FROM_VLM,),
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
            Reading(
                "vlm/lab.json",
                "json",
                (FROM_VLM,),
                accepts=ANY | DEFAULTED | {"missing": "released checkpoints have none"},
            ),
            Reading("vlm/model.safetensors", "safetensors", (FROM_VLM,), accepts=BITS),
            Reading(
                "vlm/tokenizer.json",
                "json",
                (FROM_VLM,),
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
            Reading(
                "vlm/preprocessor_config.json",
                "json",
                (FROM_VLM,),
                accepts=ANY | DEFAULTED | {"unknown key": "transformers takes any"},
            ),
        ),
    ),
    "experiment": Instance(
        make.policy,
        (
            Reading(
                "small.yaml",
                "yaml",
                ("run small.yaml --dry-run", "doctor small.yaml", "eval policy small.yaml"),
                accepts=ANY | DEFAULTED | PREFIX,
            ),
            Reading(
                "language.yaml",
                "yaml",
                ("run language.yaml --dry-run",),
                names=("rewards.",),
                accepts=ANY | DEFAULTED | PREFIX,
            ),
            Reading("mine.py", "code", ("run language.yaml --dry-run",), accepts=ANY),
        ),
    ),
    "corrections": Instance(
        make.corrections,
        (
            Reading(
                "corrections.jsonl",
                "lines",
                (
                    "correct policy small.yaml --out corrections.jsonl --port 0",
                    "run small.yaml collect.corrector={kind:\\ recorded,path:\\ corrections.jsonl} --dry-run",
                ),
                accepts=ANY | GROWING,
            ),
            Reading(
                "pairs/index.jsonl",
                "lines",
                ("run small.yaml collect.corrector={kind:\\ recorded,path:\\ pairs} --dry-run",),
                accepts=UNREAD | ANY,
            ),
            Reading(
                "pairs/pair-0000.npz",
                "npz",
                ("run small.yaml collect.corrector={kind:\\ recorded,path:\\ pairs} --dry-run",),
                accepts=BITS | UNREAD,
            ),
        ),
    ),
    "robotwin": Instance(
        make.robotwin,
        (
            Reading(
                "classic/handover_block/demo_clean/data/episode0.hdf5",
                "hdf5",
                data("classic"),
                accepts=BITS | UNREAD | {"missing": "a folder has as many episodes as there are"},
            ),
            Reading(
                "classic/handover_block/demo_clean/instructions/episode0.json",
                "json",
                data("classic", "validate"),
                accepts=UNREAD,
            ),
            Reading(
                "classic/handover_block/demo_clean/seed.txt",
                "text",
                data("classic", "validate"),
                accepts=UNREAD | PREFIX | {"missing": "a folder may have none", "empty": "the same"},
            ),
            Reading(
                "trajectory/demo_clean/handover_block/aloha_agilex/data/episode_0000000.hdf5",
                "hdf5",
                data("trajectory"),
                accepts=BITS | UNREAD | {"missing": "a folder has as many episodes as there are"},
            ),
        ),
    ),
    "lerobot": Instance(
        make.lerobot,
        (
            Reading(
                "set/meta/info.json",
                "json",
                (*data("set"), "run small.yaml demos.files.paths=[set] sft.probe_weight=0 --dry-run"),
                names=("set, episode", "episodes of set", "meta/episodes"),
                accepts=UNREAD,
            ),
            Reading(
                "set/meta/episodes/chunk-000/file-000.parquet",
                "parquet",
                (*data("set"), "run small.yaml demos.files.paths=[set] sft.probe_weight=0 --dry-run"),
                names=("set, episode", "episodes of set", "meta/episodes"),
                accepts=UNREAD,
            ),
            Reading(
                "set/meta/tasks.parquet",
                "parquet",
                data("set", "inspect", "validate"),
                names=("set, episode", "episodes of set", "meta/episodes"),
                accepts=UNREAD,
            ),
            Reading(
                "set/data/chunk-000/file-000.parquet",
                "parquet",
                data("set"),
                names=("set, episode", "episodes of set", "meta/episodes"),
                accepts=UNREAD,
            ),
        ),
    ),
    "lab data": Instance(
        make.lab_data,
        (
            Reading("episodes/index.jsonl", "lines", data("episodes"), accepts=UNREAD | GROWING),
            Reading("episodes/episode-0000.npz", "npz", data("episodes"), accepts=BITS | UNREAD),
            Reading("pairs/index.jsonl", "lines", data("pairs"), accepts=UNREAD | ANY),
            Reading("pairs/pair-0000.npz", "npz", data("pairs"), accepts=BITS | UNREAD),
        ),
    ),
    "questions": Instance(
        make.questions,
        (
            Reading("questions.jsonl", "lines", asks("questions.jsonl"), accepts=ANY | DEFAULTED),
            Reading("questions.parquet", "parquet", asks("questions.parquet"), accepts=ANY | DEFAULTED),
            Reading(
                "questions/data-00000-of-00001.arrow",
                "arrow",
                asks("questions"),
                accepts=ANY | DEFAULTED | {"null": "what is null in a table's row is absent there, such as an id"},
            ),
            Reading("questions/dataset_info.json", "json", asks("questions"), accepts=UNREAD | ANY),
            Reading("questions/state.json", "json", asks("questions"), accepts=UNREAD | ANY),
            Reading(
                "talks.jsonl",
                "lines",
                ("run language.yaml questions.cold_start_file=talks.jsonl --dry-run",),
                accepts=UNREAD | ANY,
            ),
        ),
    ),
    "resumed run": Instance(
        make.resumed,
        (
            Reading("run/config.yaml", "yaml", ("resume --resume run",), accepts=SHOWN | PREFIX, leaves_out=True),
            Reading("run/stages.json", "json", ("resume --resume run",), accepts=SHOWN | ABSENT, leaves_out=True),
            Reading("run/metrics.jsonl", "lines", ("resume --resume run",), accepts=SHOWN | GROWING, leaves_out=True),
            Reading("run/environment.json", "json", ("resume --resume run",), accepts=SHOWN | ABSENT, leaves_out=True),
            Reading("sft/stage.json", "json", ("resume --resume run",), accepts=UNREAD, leaves_out=True),
            Reading("sft/metrics.jsonl", "lines", ("resume --resume run",), accepts=SHOWN | GROWING, leaves_out=True),
        ),
    ),
    "report": Instance(
        make.reports,
        (
            Reading("run/config.yaml", "yaml", ("report run",), accepts=SHOWN | PREFIX, leaves_out=True),
            Reading("run/environment.json", "json", ("report run",), accepts=SHOWN | ABSENT, leaves_out=True),
            Reading("run/stages.json", "json", ("report run",), accepts=SHOWN | ABSENT, leaves_out=True),
            Reading("run/metrics.jsonl", "lines", ("report run",), accepts=SHOWN | GROWING, leaves_out=True),
            Reading(
                "run/episodes/rpro.1.evaluate/results.jsonl",
                "lines",
                ("report run", "report other --against run"),
                accepts=SHOWN | GROWING,
                leaves_out=True,
            ),
            Reading(
                "run/pairs/rpro.1.collect/index.jsonl",
                "lines",
                ("report run",),
                accepts=SHOWN | GROWING,
                leaves_out=True,
            ),
            Reading(
                "run/pairs/rpro.1.collect/pair-0000.npz", "npz", ("report run",), accepts=SHOWN | BITS, leaves_out=True
            ),
            Reading(
                "run/pairs/rpro.1.collect/collection.json",
                "json",
                ("report run",),
                accepts=SHOWN | ABSENT,
                leaves_out=True,
            ),
            Reading(
                "run/videos/rescued/index.jsonl", "lines", ("report run",), accepts=SHOWN | GROWING, leaves_out=True
            ),
        ),
    ),
    "language report": Instance(
        make.language_reports,
        (
            Reading("run/stages.json", "json", ("report run",), accepts=SHOWN | ABSENT, leaves_out=True),
            Reading("run/metrics.jsonl", "lines", ("report run",), accepts=SHOWN | GROWING, leaves_out=True),
            Reading(
                "run/examinations/frontier.1.examine/results.jsonl",
                "lines",
                ("report run",),
                accepts=SHOWN | GROWING,
                leaves_out=True,
            ),
            Reading(
                "run/grpo/frontier.1.grpo/held_out.jsonl",
                "lines",
                ("report run",),
                accepts=SHOWN | GROWING,
                leaves_out=True,
            ),
            Reading(
                "run/grpo/frontier.1.grpo/rollouts/step-00000005.parquet",
                "parquet",
                ("report run",),
                accepts=UNREAD | ABSENT,
                leaves_out=True,
            ),
            Reading(
                "run/grpo/frontier.1.grpo/pool.sqlite",
                "sqlite",
                ("report run",),
                accepts=UNREAD | {"torn": "SQLite checks what is read"},
                leaves_out=True,
            ),
        ),
    ),
    "pool": Instance(
        make.pool,
        (
            Reading(
                "run/pool.sqlite",
                "sqlite",
                (
                    *("pool ls run", "pool show run counting-001", "pool hist run", "pool why run counting-001@2"),
                    *("pool export run out.jsonl", "pool html run", "pool diff run run@4", "pool pin run counting-001"),
                ),
                accepts=UNREAD | {"torn": "SQLite checks what is read"},
            ),
            Reading(
                "run/checkpoints/step-4/pool.sqlite",
                "sqlite",
                ("pool diff run run@4",),
                accepts=UNREAD | {"torn": "SQLite checks what is read"},
            ),
            Reading(
                "run/rollouts/step-00000003.parquet",
                "parquet",
                ("pool show run counting-001", "pool html run"),
                accepts=UNREAD | ABSENT,
                leaves_out=True,
            ),
            Reading(
                "traces/rollouts/step-00000001.parquet",
                "parquet",
                ("pool show traces 3", "pool why traces 3@1"),
                accepts=UNREAD | ABSENT,
                leaves_out=True,
            ),
        ),
    ),
    "answers": Instance(
        make.answers,
        (
            Reading(
                "run/config.yaml",
                "yaml",
                ("rescore run --reward short",),
                names=("--reward short",),
                accepts=SHOWN | PREFIX,
                leaves_out=True,
            ),
            Reading(
                "run/questions/questions/train.arrow",
                "arrow",
                ("rescore run --reward short",),
                names=("the run's questions",),
                accepts=UNREAD,
            ),
            Reading(
                "run/grpo/verifier.1.grpo/rollouts/step-00000001.parquet",
                "parquet",
                ("rescore run --reward short",),
                accepts=UNREAD,
            ),
            Reading("mine.yaml", "yaml", ("rescore run --reward mine.yaml",), accepts=ANY),
            Reading("mine.py", "code", ("rescore run --reward mine.yaml",), accepts=ANY),
        ),
    ),
    "chunks": Instance(
        make.chunks,
        (
            Reading(
                "run/config.yaml",
                "yaml",
                ("rescore run --reward random",),
                names=("ranking.", "--reward random"),
                accepts=SHOWN | PREFIX,
                leaves_out=True,
            ),
            Reading(
                "run/stages.json", "json", ("rescore run --reward random",), accepts=SHOWN | ABSENT, leaves_out=True
            ),
            Reading(
                "run/candidates/seed.1.candidates/index.jsonl",
                "lines",
                ("rescore run --reward random",),
                accepts=UNREAD | GROWING,
            ),
            Reading(
                "run/candidates/seed.1.candidates/state-0000.npz",
                "npz",
                ("rescore run --reward random",),
                accepts=UNREAD | BITS,
            ),
            Reading(
                "run/episodes/seed.1.episodes/index.jsonl",
                "lines",
                ("rescore run --reward success",),
                accepts=UNREAD | GROWING,
            ),
            Reading(
                "run/episodes/seed.1.episodes/episode-0000.npz",
                "npz",
                ("rescore run --reward success",),
                accepts=UNREAD | BITS,
            ),
        ),
    ),
}


def copy(built: Path, folder: Path) -> Path:
    """A copy of a built instance that may be damaged; links stay links."""
    return Path(shutil.copytree(built, folder, symlinks=True))
