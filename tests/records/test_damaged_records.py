"""The lab's own records, damaged or edited, end in one line that names their file, and nothing is written."""

import dataclasses
import json
import re

import numpy as np
import pytest

from rl_lab.common.errors import UserError
from rl_lab.data import main
from rl_lab.records.checks import episode_problems
from rl_lab.records.episodes import write_pairs
from rl_lab.workers.policy import read_corrections
from tests.support.episodes import episode, pair
from tests.support.refusals import refusal


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path / "lab", [pair(1, 5, 4), pair(2, 4, 4)])
    return tmp_path / "lab"


def cut(folder):
    path = folder / "pair-0000.npz"
    path.write_bytes(path.read_bytes()[:3000])


def flip(folder):
    path = folder / "pair-0000.npz"
    content = bytearray(path.read_bytes())
    content[400:420] = b"\xff" * 20
    path.write_bytes(content)


def edit_array(name, change):
    def edit(folder):
        with np.load(folder / "pair-0000.npz") as arrays:
            kept = dict(arrays)
        kept[name] = change(kept[name])
        np.savez(folder / "pair-0000.npz", **kept)

    return edit


def label(**values):
    def edit(folder):
        path = folder / "index.jsonl"
        first, *others = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | values), *others]) + "\n")

    return edit


def forget(folder):
    path = folder / "index.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")


DAMAGES = {
    "pair-0000.npz cannot be read, broken or truncated": (cut, flip),
    "pair-0000.npz cannot be read, broken or truncated: Object arrays": (
        edit_array("winner_poses", lambda _: np.array([{}])),
    ),
    "action is complex128, expected numbers": (edit_array("winner_actions", lambda a: a.astype(complex)),),
    "images are float64 .5, 3, 64, 64, 3., expected uint8": (edit_array("winner_images", np.float64),),
    "index.jsonl, line 1: seed: Input should be a valid integer": (label(seed="3"),),
    "index.jsonl, line 1: unknown key 'colour'": (label(colour="red"),),
    "seed is a number of 31 digits": (label(seed=10**30),),
    "index.jsonl, line 1: .*lone leading surrogate": (label(instruction="\udcff"),),
    "index.jsonl lists 1 of 2 records": (forget,),
}
CASES = [(words, damage) for words, damages in DAMAGES.items() for damage in damages]


@pytest.mark.parametrize(("words", "damage"), CASES)
@pytest.mark.parametrize("command", ["validate", "inspect", "convert"])
def test_damage_is_named(pairs, tmp_path, capsys, words, damage, command):
    damage(pairs)
    target = [str(tmp_path / "out"), "--to", "pairs"] if command == "convert" else []
    said = refusal(main, [command, str(pairs), *target])
    assert re.search(words, f"{said} {capsys.readouterr().out}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab"]


def test_text_that_no_table_can_hold_and_commands_of_another_width_are_problems():
    odd = dataclasses.replace(episode(1), instruction="\udcff")
    assert [each.text for each in episode_problems("x", odd)] == ["instruction has half a character (a lone surrogate)"]
    odd = dataclasses.replace(episode(1), actions=np.zeros((15, 14)))
    assert "action has shape [15, 14], expected [n, 16]" in [each.text for each in episode_problems("x", odd)]


ACTION = [0.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 1.0] * 2
LINE = {"task": "t", "variant": "v", "seed": 1, "step": 2, "actions": [ACTION]}


def test_a_correction_is_read(tmp_path):
    (tmp_path / "corrections").write_text(json.dumps(LINE) + "\n")
    ((place, actions),) = read_corrections(tmp_path / "corrections").items()
    assert place == ("t", "v", 1, 2) and actions.tolist() == [ACTION]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "line 1: JSON nested too deeply"),
        (json.dumps(LINE | {"seed": "1"}), "line 1: seed: Input should be a valid integer"),
        (json.dumps(LINE | {"actions": [ACTION[:7]]}), "line 1: actions.0: List should have at least 16 items"),
        (json.dumps(LINE | {"actions": []}), "line 1: there are no actions"),
        (json.dumps(LINE | {"actions": [[np.nan] * 16]}), "line 1: actions.0.0 is not a finite number"),
        (json.dumps(LINE | {"actions": [[0.0] * 16]}), "line 1, frame 0: action of the left arm has a quaternion of"),
        (json.dumps(LINE) + "\n[]", "line 2: "),
        ("", "has no corrections"),
    ],
)
def test_a_damaged_correction_is_named_by_its_line(tmp_path, text, words):
    (tmp_path / "corrections").write_text(text)
    said = refusal(read_corrections, tmp_path / "corrections")
    assert words in said and said.startswith("collect.corrector.path: ")


def test_damaged_pairs_are_no_corrections(pairs):
    cut(pairs)
    with pytest.raises(UserError, match="collect.corrector.path: .*pair-0000.npz cannot be read"):
        read_corrections(pairs)
