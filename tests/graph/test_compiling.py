"""Runs whose layers are to be compiled: what is refused before they begin."""

import pytest
from torch._inductor import config as inductor

from rl_lab.common.errors import UserError, run_command
from rl_lab.stages.kinds import load_config
from rl_lab.stages.preflight import check_machine
from tests.support.experiments import EXPERIMENTS

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
