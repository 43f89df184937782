"""What a run needs at least, and that a machine or settings without it are refused before anything is written."""

from pathlib import Path

import pytest
from torch._inductor import config as inductor

from rl_lab import run
from rl_lab.common.errors import UserError, run_command
from rl_lab.graph.nodes import stage_hashes
from rl_lab.graph.store import RECORD_FILE, Store
from rl_lab.stages import needs as module
from rl_lab.stages.kinds import expand, load_config
from rl_lab.stages.needs import GIB, Needs, lacking_room, needs
from rl_lab.stages.preflight import check_machine
from tests.support.experiments import EXPERIMENTS, write_small
from tests.support.models import make_policy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with the small experiment in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_small(tmp_path)
    return tmp_path


def wanted(home: Path, *overrides: str, stored: str | None = None) -> Needs:
    """Of the small experiment, one of whose stages may be in the store."""
    config, store = load_config(home / "small.yaml", list(overrides)), Store(home / "store")
    nodes = expand(config)
    hashes = stage_hashes(nodes, config.seed, {})
    if stored:
        store.path(hashes[stored]).mkdir(parents=True)
        (store.path(hashes[stored]) / RECORD_FILE).touch()
    return needs(config, nodes, hashes, store)


def counts() -> dict[str, int]:
    """Numbers of the nano policy by group, and of all of it."""
    policy = make_policy()
    groups = {name: sum(p.numel() for p in group) for name, group in policy.parameter_groups().items()}
    return groups | {"": sum(p.numel() for p in policy.parameters())}


def test_memory_is_that_of_the_largest_training(home: Path) -> None:
    found = counts()
    trained = found["vision"] + found["vlm"] + found["expert"]
    assert wanted(home).stage == "sft"
    assert wanted(home).memory == 4 * found[""] + (4 + 4 + 4) * trained
    assert wanted(home, "model.dtype=bfloat16").memory == 2 * found[""] + (4 + 4 + 4 + 4) * trained


def test_disk_is_a_checkpoint_for_every_training_that_is_not_stored_and_a_state(home: Path) -> None:
    # SFT, and two rounds of rpro and of its control continued_sft.
    found = counts()
    weights, trained = 4 * found[""], found["vision"] + found["vlm"] + found["expert"]
    assert wanted(home).disk == 5 * weights + weights + 8 * trained
    after = wanted(home, stored="sft")
    assert after.disk == 4 * weights + weights + 8 * found["expert"]
    assert after.memory == weights + 12 * found["expert"]


def test_a_model_that_cannot_fit_is_refused_before_anything_is_written_and_warned_of_in_a_dry_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_memory", lambda config: (GIB // 100, "this machine"))

    with pytest.raises(UserError, match=r"sft needs at least 0\.0 GiB of memory .* but this machine has 0\.0 GiB"):
        run.main(["small.yaml"])
    assert [path.name for path in home.iterdir()] == ["small.yaml"]
    assert run.main(["small.yaml", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "needs at least 0.03 GiB of memory for a learner and 0.08 GiB of disk" in said.out
    assert "warning: sft needs at least" in said.err


def test_a_disk_that_cannot_hold_the_checkpoints_is_named(home: Path) -> None:
    config, store = load_config(home / "small.yaml"), Store(home / "store")
    assert lacking_room(config, Needs(disk=1), store) is None
    line = lacking_room(config, Needs(disk=10**18), store)
    assert line is not None and "checkpoints need at least 931322574.6 GiB of disk but" in line and str(home) in line


def test_a_cluster_is_not_judged_by_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert lacking_room(load_config(home / "small.yaml"), Needs(memory=10**18), Store(home / "store")) is None


SMOKE, JOINT = EXPERIMENTS / "flowpro_smoke.yaml", EXPERIMENTS / "joint.yaml"


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        (SMOKE, ["sft.compile=true", "placement={learner: {ranks: 2}}"], r"sft\.compile is true, but .*ranks is 2"),
        (JOINT, ["optimise.compile=true"], r"optimise\.compile is true, but joint trains language as well"),
    ],
)
def test_what_cannot_be_compiled_is_refused(path, options, words, monkeypatch):
    monkeypatch.setattr("rl_lab.stages.preflight.has_vllm", lambda: True)
    with pytest.raises(UserError, match=words):
        check_machine(load_config(path, options))


def test_a_run_without_a_compiler_ends_with_one_line(capsys):
    without = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with without, pytest.raises(SystemExit) as end:
        check_machine(load_config(SMOKE))
        run_command(lambda: check_machine(load_config(SMOKE, ["optimise.compile=true"])))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert "optimise.compile is true: torch.compile needs" in error and "optimise.compile=false" in error


def test_several_threads_are_refused_because_no_run_could_be_repeated():
    with pytest.raises(UserError, match=r"compile is true but threads is 2.*set threads to 1"):
        load_config(SMOKE, ["sft.compile=true", "sft.threads=2"])
