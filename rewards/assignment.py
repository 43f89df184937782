"""Best one-to-one matching: the Hungarian method with potentials (Kuhn 1955; Jonker and Volgenant 1987), O(n^2 m)."""

from __future__ import annotations

import numpy as np


def best_assignment(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int64 [min(N, M)] each, of the matching with the largest sum of `score` [N, M], finite.

    Every row (or column, if there are fewer) gets a partner. One shortest augmenting path for each row.
    """
    if score.shape[0] > score.shape[1]:
        columns, rows = best_assignment(score.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    num_rows, num_columns = score.shape
    # Number 0 stands for "none" in rows and columns; the potentials keep cost - row - column >= 0.
    row_potential, column_potential = np.zeros(num_rows + 1), np.zeros(num_columns + 1)
    partner = np.zeros(num_columns + 1, dtype=np.int64)
    for row in range(1, num_rows + 1):
        partner[0] = row
        column, previous = _augmenting_path(-score, row_potential, column_potential, partner)
        while column:
            partner[column] = partner[previous[column]]
            column = previous[column]
    columns = np.flatnonzero(partner[1:])
    order = np.argsort(partner[1:][columns])
    return np.arange(num_rows), columns[order]


def _augmenting_path(
    cost: np.ndarray, row_potential: np.ndarray, column_potential: np.ndarray, partner: np.ndarray
) -> tuple[int, np.ndarray]:
    """The free column that ends the shortest path from `partner[0]`, and the column before each; moves potentials."""
    slack = np.full(len(partner), np.inf)
    previous = np.zeros(len(partner), dtype=np.int64)
    visited = np.zeros(len(partner), dtype=bool)
    column = 0
    while column == 0 or partner[column]:
        visited[column] = True
        row = partner[column]
        reduced = np.concatenate([[np.inf], cost[row - 1] - row_potential[row] - column_potential[1:]])
        shorter = ~visited & (reduced < slack)
        slack[shorter], previous[shorter] = reduced[shorter], column
        column = int(np.argmin(np.where(visited, np.inf, slack)))
        step = slack[column]
        row_potential[partner[visited]] += step
        column_potential[visited] -= step
        slack[~visited] -= step
    return column, previous
