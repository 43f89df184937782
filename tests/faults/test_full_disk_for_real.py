"""A whole run with its real processes on a small disk that fills up again and again: the bits of one with room."""

import time
from pathlib import Path

import pytest
import yaml

from tests.faults.comparison import differences
from tests.faults.disks import fill, free, small_disk
from tests.faults.test_kill import CONFIG
from tests.support.processes import PATIENCE_S, Run

pytestmark = pytest.mark.slow

MOMENTS = (("demos", 0), ("sft", 5), ("rpro.1.collect", 0), ("rpro.1.optimise", 6))
"""Stage, and lines of its metrics, at which the disk is found full."""


def start(folder: Path, log: Path) -> Run:
    """The tiny experiment, tracked offline, as is the default; what it says goes to another disk."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG | {"wandb": "offline"}))
    return Run(folder, "tiny.yaml", log=log)


def test_a_run_on_a_disk_that_fills_up_ends_with_one_line_each_time_and_with_the_same_bits(tmp_path):
    unbroken = start(tmp_path / "unbroken", tmp_path / "unbroken.txt")
    unbroken.finish()
    with small_disk(tmp_path / "disk", "300m") as disk:
        run = start(disk / "home", tmp_path / "broken.txt")
        for node, lines in MOMENTS:
            until = time.monotonic() + PATIENCE_S
            while run.status(node) != "running" or run.lines(node) < lines:
                assert time.monotonic() < until and not run.is_over, run.log.read_text()[-4000:]
                time.sleep(0.02)
            said = len(run.log.read_text())
            fill(disk)
            assert run.process.wait(PATIENCE_S) == 1
            free(disk)
            text = run.log.read_text()[said:]
            errors = [line for line in text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and "no space is left on the disk" in errors[0], text
            assert "Traceback" not in text, text
            run.resume()
        run.finish()
        assert list(differences(run.folder, unbroken.folder)) == []
