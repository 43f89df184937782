"""python -m rl_lab.pool COMMAND RUN …

Shows the curriculum pool of a run, live or finished, and pins or retires its items.

    ls RUN                    items, with filters and an order         show RUN ITEM     one item with its history
    hist RUN                  bands over time                          why RUN ITEM@STEP why it was (not) sampled
    pin | retire RUN ITEM …   from the run's next selection on         export RUN FILE   .jsonl or .parquet
    diff RUN_A RUN_B          two pools                                html RUN          one self-contained page

RUN is a run folder; of a run with several pools, RUN/grpo/NODE. RUN@STEP is its checkpoint at that
step. Pins and retirements need a run that goes on. Of traces that were sampled for fine-tuning, RUN/rft/NODE, show and
why say which were kept and why others were dropped.
Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing

from algos.curriculum.items import BANDS
from rl_lab.common.arguments import COUNT, as_path, check_output
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.curriculum.edits import give_edits
from rl_lab.curriculum.show import difference, export, history, listing, show
from rl_lab.curriculum.store import connect, transaction
from rl_lab.curriculum.traces import explain_traces, show_traces, trace_folder
from rl_lab.curriculum.view import SORTS, Filter, PoolView
from rl_lab.curriculum.why import explain
from rl_lab.reports.pages.pool import write_page

Options = argparse.Namespace


def interval(text: str) -> tuple[float, float]:
    """`LOW:HIGH`, `LOW:` or `:HIGH` as two numbers."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low or "-inf"), float(high or "inf")
    except ValueError:
        ends = 1.0, 0.0
    if not colon or not ends[0] <= ends[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no range; write LOW:HIGH, for example 0.2:0.8 or :10")
    return ends


def _filter(options: Options) -> Filter:
    names = ("band", "category", "rate", "age", "state", "sort", "reverse")
    return Filter(**{name: getattr(options, name) for name in names})


def _ls(options: Options) -> str:
    with closing(PoolView(options.run)) as view:
        return listing(view, view.select(_filter(options)), options.limit)


def _show(options: Options) -> str:
    traces = trace_folder(options.run)
    if traces is not None:
        return show_traces(traces, options.item, options.rollouts)
    with closing(PoolView(options.run)) as view:
        return show(view, options.item, options.rollouts, options.images or view.place.run / "pool_images")


def _hist(options: Options) -> str:
    with closing(PoolView(options.run)) as view:
        return history(view, options.category, options.lines)


def _why(options: Options) -> str:
    item, _, step = options.item.rpartition("@")
    if not item or not step.isdigit():
        raise UserError(f"{options.item!r} is not ITEM@STEP; write for example {options.item.split('@')[0]}@12")
    traces = trace_folder(options.run)
    if traces is not None:
        return "\n".join(explain_traces(traces, item, int(step)))
    with closing(PoolView(options.run)) as view:
        return "\n".join(explain(view, item, int(step)))


def _edit(options: Options) -> str:
    with closing(PoolView(options.run)) as view:
        place = view.place
        if place.path.parent != place.folder:
            raise UserError(f"{options.run} is a checkpoint, which does not change; give the run, {place.folder}")
        if place.over:
            raise UserError(f"{options.run} is over, nothing would take effect; edit the pool of a run that goes on")
        numbers, step = [view.number(item) for item in options.items], view.now[0]
    undo = {"pin": "unpin", "retire": "restore"}
    action = undo[options.command] if options.undo else options.command
    with closing(connect(place.path)) as db, transaction(db):
        give_edits(db, action, numbers)
    after = f"after step {step}" if step >= 0 else "its first"
    return f"{action} {', '.join(options.items)}: takes effect at the run's next selection, {after}"


def _diff(options: Options) -> str:
    with closing(PoolView(options.run)) as first, closing(PoolView(options.other)) as second:
        return difference(first, second, options.limit)


def _export(options: Options) -> str:
    with closing(PoolView(options.run)) as view:
        numbers = view.select(_filter(options))
        export(view, numbers, options.file)
    return f"{len(numbers)} items\n{options.file}"


def _html(options: Options) -> str:
    with closing(PoolView(options.run)) as view:
        path = options.out or view.place.page
        if path.resolve() != view.place.page.resolve():
            check_output(path, view.place.run)
        numbers = view.select(_filter(options))[: options.limit]
        return "\n".join([*write_page(view, numbers, options.rollouts, path), str(path)])


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--band", choices=BANDS)
    parser.add_argument("--category", metavar="NAME")
    parser.add_argument("--rate", type=interval, metavar="LOW:HIGH", help="estimated pass rate")
    parser.add_argument("--age", type=interval, metavar="LOW:HIGH", help="weight versions since the last observation")
    parser.add_argument("--state", choices=("pinned", "retired", "pending"))
    parser.add_argument("--sort", choices=SORTS, default="frontier", help="frontier: probability of the frontier band")
    parser.add_argument("--reverse", action="store_true", help="the other way round")


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(prog=parser.prog, dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Options], str], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "run",
            metavar="RUN",
            help="a run folder, RUN/grpo/NODE if it holds several pools, or either with @STEP for a checkpoint",
        )
        added.set_defaults(function=run)
        return added

    added = command("ls", _ls, "List items.")
    _add_filters(added)
    added.add_argument("--limit", type=COUNT, default=20, metavar="N")
    added = command("show", _show, "Show one item.")
    added.add_argument("item", metavar="ITEM")
    added.add_argument("--rollouts", type=COUNT, default=4, metavar="N", help="newest rollouts shown")
    added.add_argument("--images", type=as_path, metavar="FOLDER", help="where to save pictures (RUN/pool_images)")
    added = command("hist", _hist, "Show the bands over time.")
    added.add_argument("--category", metavar="NAME")
    added.add_argument("--lines", type=COUNT, default=24, metavar="N")
    added = command("why", _why, "Say why an item was or was not sampled at a step.")
    added.add_argument("item", metavar="ITEM@STEP")
    for name, text in (("pin", "Put items into every batch."), ("retire", "Never sample items again.")):
        added = command(name, _edit, text)
        added.add_argument("items", nargs="+", metavar="ITEM")
        added.add_argument("--undo", action="store_true", help="take it back")
    added = command("diff", _diff, "Compare two pools.")
    added.add_argument("other", metavar="RUN_B", help="another run folder or checkpoint")
    added.add_argument("--limit", type=COUNT, default=20, metavar="N")
    added = command("export", _export, "Write items to a file.")
    added.add_argument("file", type=as_path, metavar="FILE", help="a new .jsonl or .parquet file")
    _add_filters(added)
    added = command("html", _html, "Write one self-contained page.")
    _add_filters(added)
    added.add_argument("--limit", type=COUNT, default=300, metavar="N", help="items in the page")
    added.add_argument("--rollouts", type=COUNT, default=4, metavar="N", help="newest rollouts of each item")
    added.add_argument("--out", type=as_path, metavar="FILE", help="where to write it (into RUN)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    options = _parser().parse_args(arguments)
    print(options.function(options))
    return 0


if __name__ == "__main__":
    run_command(main)
