"""Labelled answers for outcome reward models, from the rollout stores of a run; split by scene, so that no picture of
the training shows up in the examination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl_lab.errors import UserError
from rl_lab.files import write_file
from rl_lab.language.item_files import ItemFile
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.seeding import stream

LABELS_FILE = "labels.parquet"
TRUTH = "answer"
"""The part of a stored reward that is the truth, whatever the run trained on."""
SPLITS = ("train", "calibration", "test")
COLUMNS = ("item", "completion", "rewards")


@dataclass(frozen=True)
class OutcomeLabels:
    """N answers with their true rewards."""

    row: np.ndarray
    """Of the question in its file, int64 [N]."""
    completion: list[str]
    truth: np.ndarray
    """float64 [N] in 0..1."""
    split: np.ndarray
    """Index of SPLITS, int64 [N]."""

    def __len__(self) -> int:
        return len(self.completion)

    def of(self, split: str) -> OutcomeLabels:
        """Those of a split."""
        return self.take(np.flatnonzero(self.split == SPLITS.index(split)))

    def take(self, places: np.ndarray) -> OutcomeLabels:
        """Those at these places."""
        texts = [self.completion[place] for place in places.tolist()]
        return OutcomeLabels(self.row[places], texts, self.truth[places], self.split[places])

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        columns = {"row": self.row, "completion": self.completion, "truth": self.truth, "split": self.split}
        write_file(path, lambda file: pq.write_table(pa.table(columns), file))

    @classmethod
    def load(cls, path: Path) -> OutcomeLabels:
        """What `save` wrote."""
        table = pq.read_table(path, use_threads=False)
        row, truth, split = (table[name].to_numpy() for name in ("row", "truth", "split"))
        return cls(row, table["completion"].to_pylist(), truth, split)


def scene_splits(scenes: Sequence[str], shares: tuple[float, float], seed: int) -> dict[str, int]:
    """Index of SPLITS of every scene: `shares` to calibration and test, the rest to training.

    ValueError for fewer than three scenes.
    """
    names = sorted(set(scenes))
    if len(names) < 3:
        raise ValueError(f"there are {len(names)} scenes; training, calibration and test need one each")
    order = stream(seed, "outcome", "splits").permutation(len(names)).tolist()
    sizes = [max(1, round(share * len(names))) for share in shares]
    held = [1] * sizes[0] + [2] * sizes[1]
    return {names[place]: held[k] if k < len(held) else 0 for k, place in enumerate(order)}


def label_answers(
    folders: Sequence[Path], items: ItemFile, shares: tuple[float, float], seed: int
) -> tuple[OutcomeLabels, int]:
    """All answers of the stores with their true rewards, and how many have none (a judge or verifier failed).

    UserError without answers, for one to an unknown question, and where scenes are too few to split.
    """
    places = items.rows_by_id()
    rows, texts, truths, unknown = [], [], [], 0
    for row in _stored(folders):
        if row["item"] not in places:
            raise UserError(f"there is an answer to {row['item']}, which is not among the run's questions")
        truth = row["rewards"].get(TRUTH)
        unknown += truth is None
        if truth is not None:
            rows.append(places[row["item"]])
            texts.append(row["completion"])
            truths.append(truth)
    if not rows:
        raise UserError("there are no stored answers with a true reward; give a run that sampled some")
    scenes = {row: items.record(row)["scene"] for row in set(rows)}
    try:
        splits = scene_splits(list(scenes.values()), shares, seed)
    except ValueError as error:
        raise UserError(f"outcome: {error}") from error
    split = np.array([splits[scenes[row]] for row in rows])
    return OutcomeLabels(np.array(rows), texts, np.array(truths), split), unknown


def _stored(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        store = RolloutStore(folder)
        for step in store.steps():
            yield from store.read(steps=[step], columns=COLUMNS)


def answer_pairs(answers: OutcomeLabels, margin: float, most: int, seed: int) -> list[tuple[int, int]]:
    """Places (better, worse) of answers to the same question whose true rewards differ by `margin` or more.

    At most `most` a question, drawn without replacement; equal texts make no pair.
    """
    pairs: list[tuple[int, int]] = []
    for row in np.unique(answers.row).tolist():
        members = np.flatnonzero(answers.row == row).tolist()
        found = [
            (a, b)
            for a in members
            for b in members
            if answers.truth[a] - answers.truth[b] >= max(margin, 1e-9)
            and answers.completion[a] != answers.completion[b]
        ]
        if len(found) > most:
            chosen = stream(seed, "outcome", "pairs", row).choice(len(found), most, replace=False)
            found = [found[place] for place in sorted(chosen.tolist())]
        pairs += found
    return pairs
