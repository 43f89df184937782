"""The wheel works outside the clone, by its console command, beside folders of a user's that are called as ours are."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("rl_lab", "envs", "algos", "rewards", "experiments", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` of an environment that has the wheel; whatever the wheel needs is found where this test finds it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sources").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "sources" / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / "sources" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(folder / "sources")]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=folder)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def call(folder, *command, limit_s=300):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s
    )


def test_an_experiment_of_the_lab_runs_by_name_beside_a_folder_called_envs(installed, tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    done = call(tmp_path, installed / "rl-lab", "run", "flowpro_smoke", "--plan")
    assert done.returncode == 0, done.stderr
    assert "rpro.2.evaluate" in done.stdout and not (tmp_path / "runs").exists()
    note = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(note) == 1 and str(tmp_path / "envs") in note[0] and str(installed.parent / "lib") in note[0]


def test_the_console_command_lists_commands_and_suggests_the_nearest(installed, tmp_path):
    done = call(tmp_path, installed / "rl-lab", "poool")
    assert (done.returncode, done.stderr) == (2, "error: there is no command 'poool'; did you mean pool?\n")
    shown = call(tmp_path, installed / "rl-lab").stdout
    assert re.search(r"^  run +Runs an experiment", shown, re.M) and "  pool " in shown and "__main__" not in shown
    typed = [
        next((installed.parent / "lib").glob(f"python*/site-packages/{name}/py.typed")) for name in ("rl_lab", "envs")
    ]
    assert len(typed) == 2


def test_the_lock_file_holds_every_requirement_in_a_version_that_is_allowed():
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.M))
    assert "://" not in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)], prereleases=True), line


@pytest.mark.slow
def test_workers_of_a_run_take_our_packages_beside_folders_of_the_same_names(installed, tmp_path):
    for name in ("envs", "rewards", "algos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    shutil.copy(ROOT / "examples" / "reach.py", tmp_path / "mine.py")
    settings = "demos: {episodes: 2}\nsft: {steps: 2, warmup: 1, batch_size: 2, probe_weight: 0}\n"
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nenv: {backend: 'mine.py:make', image_size: 64}\nmodel: {preset: nano}\nwandb: disabled\n"
        f"{settings}stages: [demos, sft, evaluate]\neval: {{episodes: 2, seeds: development}}\n"
    )
    done = call(tmp_path, installed / "rl-lab", "run", "mine.yaml", "--run-dir", "run", limit_s=1200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file() and "of 2" in done.stdout + done.stderr
