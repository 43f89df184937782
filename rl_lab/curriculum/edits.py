"""Pins and retirements that somebody gives a running job: rows of the pool that its next selection reads and applies.

They are the only input of a pool that does not follow from its seed. Each keeps the step at which it took effect; a run
resumed from an earlier checkpoint applies it at that same step, so that it repeats what the unbroken run did.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from algos.curriculum.curriculum import Curriculum

EDITS = """
CREATE TABLE edits (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, action TEXT NOT NULL,
  number INTEGER NOT NULL, due_step INTEGER, applied_step INTEGER);
"""
ACTIONS = ("pin", "unpin", "retire", "restore")
"""pin: in every batch; retire: in none; the other two take them back."""


@dataclass(frozen=True)
class Edit:
    """One action on one item."""

    id: int
    time: float
    """Seconds since the epoch at which it was given."""
    action: str
    number: int

    def apply(self, curriculum: Curriculum) -> None:
        """Change the item."""
        change = curriculum.pin if self.action in ("pin", "unpin") else curriculum.retire
        change(np.array([self.number]), self.action in ("pin", "retire"))


def give_edits(db: sqlite3.Connection, action: str, numbers: Iterable[int]) -> None:
    """Write an action for items; it takes effect at the next selection of the run."""
    assert action in ACTIONS, f"unknown action {action}"
    rows = [(time.time(), action, number) for number in numbers]
    db.executemany("INSERT INTO edits (time, action, number) VALUES (?, ?, ?)", rows)


def due_edits(db: sqlite3.Connection, step: int) -> list[Edit]:
    """Edits that the selection of this step applies, in the order in which they were given."""
    query = """SELECT id, time, action, number FROM edits
        WHERE applied_step IS NULL AND (due_step IS NULL OR due_step <= ?) ORDER BY id"""
    return [Edit(*row) for row in db.execute(query, (step,))]


def carry_edits(live: sqlite3.Connection, restored: sqlite3.Connection) -> None:
    """Keep the edits of a live pool in the copy that replaces it; those not applied there wait for their own step."""
    exists = live.execute("SELECT 1 FROM sqlite_master WHERE name = 'edits'").fetchone()
    # A run killed twice may not have come to the step again at which an edit had taken effect.
    query = "SELECT id, time, action, number, COALESCE(applied_step, due_step) FROM edits"
    rows = live.execute(query).fetchall() if exists else []
    restored.executemany("INSERT OR IGNORE INTO edits VALUES (?, ?, ?, ?, NULL, NULL)", [row[:4] for row in rows])
    restored.executemany(
        "UPDATE edits SET due_step = ? WHERE id = ? AND applied_step IS NULL", [(row[4], row[0]) for row in rows]
    )
