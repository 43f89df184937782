"""Fine-tuning on kept traces: cross-entropy on the very tokens that were sampled, with the pictures of their items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from algos.batch import TokenBatch
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file
from rl_lab.common.seeding import integer
from rl_lab.config.section import OptimiserConfig
from rl_lab.learner.language import LanguagePlan, OrderedData, epoch_order
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import LanguageModel, load_language_model
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import KEPT_FILE, kept_batches
from rl_lab.records.token_batches import imitation_batch, item_prompt

INDEX_SCHEMA = pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.int32()))])
"""Row of the item in the pool's file, and the trace's tokens with its end token."""


def write_traces(path: Path, batches: Iterable[pa.RecordBatch], items: ItemFile, source: Path) -> None:
    """The columns `item` and `tokens` of batches of traces as a `TraceFile`; UserError, naming the source, for a trace
    of an item that the pool does not have."""
    rows = items.rows_by_id()

    def write(file: Any) -> None:
        with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
            for batch in batches:
                names = batch.column("item").to_pylist()
                unknown = [name for name in names if name not in rows]
                if unknown:
                    raise UserError(f"{source} has a trace of {unknown[0]}, which is not in the pool")
                numbers = pa.array([rows[name] for name in names], pa.int64())
                writer.write_batch(pa.record_batch([numbers, batch.column("tokens")], schema=INDEX_SCHEMA))

    write_file(path, write)


def write_index(traces: Path, items: ItemFile, path: Path) -> None:
    """The kept traces of a finished selection as a file to be read by number; a few thousand in memory at a time.

    UserError if there is none, and as `write_traces`.
    """
    write_traces(path, kept_batches(traces), items, traces / KEPT_FILE)
    if not len(TraceFile(path)):
        raise UserError(f"no trace was kept in {traces}; see why with `python -m rl_lab.pool`, and mend traces.select")


class TraceFile:
    """Traces by number; the file is mapped into memory, not read."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, number: int) -> tuple[int, list[int]]:
        """Row of the item in the pool's file, and tokens; IndexError behind the last."""
        return self._table["row"][number].as_py(), self._table["tokens"][number].as_py()


@dataclass(frozen=True)
class RFTPlan(LanguagePlan):
    """Fine-tuning of a checkpoint on kept traces."""

    policy: Path
    settings: OptimiserConfig
    traces: Path
    """File of `write_index`."""
    items: Path
    """The pool's file, whose rows the traces name."""
    seed: int

    name = "rft"

    def start(self) -> LanguageModel:
        """See `LanguagePlan`."""
        return load_language_model(self.policy)

    def data(self, processor: HunYuanVLMoTProcessor) -> OrderedData:
        """See `LanguagePlan`; an item that several traces of a batch belong to is read once."""
        traces, items, settings = TraceFile(self.traces), ItemFile(self.items), self.settings

        def batch_of(numbers: list[int]) -> TokenBatch:
            read = [traces[number] for number in numbers]
            rows = list(dict.fromkeys(row for row, _ in read))
            prompts = [item_prompt(items[row], processor) for row in rows]
            return imitation_batch(prompts, [(rows.index(row), tokens) for row, tokens in read], processor)

        order = epoch_order(len(traces), settings.steps, settings.batch_size, integer(self.seed, "rft"))
        return OrderedData(traces, order, batch_of)
