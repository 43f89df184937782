"""Which seeds and which scene families belong to training and to the two held-out sets.

A seed decides its split. `heldout_seeds` has new scenes of the families of training, `heldout_scenes` families that
training never shows: other layouts of objects, and a task with other objects.
"""

from __future__ import annotations

SPLITS = {
    "train": range(0, 1_000_000_000),
    "heldout_seeds": range(1_000_000_000, 1_100_000_000),
    "heldout_scenes": range(1_100_000_000, 1_200_000_000),
}
"""Seeds of each split; their bounds are multiples of `SEEDS_PER_BLOCK`."""
SEEDS_PER_BLOCK = 64
"""Neighbouring seeds that ask about one rollout of a task, at different times: a rollout costs more than a question."""
TRAIN_LAYOUTS = ("scatter", "row", "cluster")
HELDOUT_LAYOUTS = ("ring", "diagonal")
TRAIN_TASKS = ("stack_blocks_two", "handover_block", "blocks_ranking_rgb", "grab_roller")
HELDOUT_TASKS = ("lift_pot",)
TRAIN_TOWERS = ("tower",)
HELDOUT_TOWERS = ("two_towers",)


def split_of(seed: int) -> str:
    """The split that a seed belongs to; ValueError for a seed of none."""
    for split, seeds in SPLITS.items():
        if seed in seeds:
            return split
    last = max(seeds.stop for seeds in SPLITS.values())
    raise ValueError(f"seed {seed} belongs to no split; use 0 to {last - 1}")


def layouts_of(seed: int) -> tuple[str, ...]:
    """Layouts of objects on the table that a seed may show."""
    return HELDOUT_LAYOUTS if split_of(seed) == "heldout_scenes" else TRAIN_LAYOUTS


def towers_of(seed: int) -> tuple[str, ...]:
    """Layouts of stacked blocks that a seed may show."""
    return HELDOUT_TOWERS if split_of(seed) == "heldout_scenes" else TRAIN_TOWERS


def tasks_of(seed: int) -> tuple[str, ...]:
    """Tasks whose rollouts a seed may show."""
    return HELDOUT_TASKS if split_of(seed) == "heldout_scenes" else TRAIN_TASKS
