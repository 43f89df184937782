"""python -m rl_lab.report RUN [--against RUN]

Rebuilds summary.json and report.html of a run folder and prints its table. With --against it also compares the run with
another one on the episodes that both evaluated, and writes compare-<other>.html beside the report. Damaged files are
left out, and named on stderr and in the page. Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rl_lab.common.arguments import as_path
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.reports.pages.against import comparison_lines, write_comparison
from rl_lab.reports.pages.run import write_pages
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure, summary_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    parser = CommandParser(__doc__)
    parser.add_argument("run", type=as_path, metavar="RUN", help="a run folder")
    parser.add_argument("--against", type=as_path, metavar="RUN", help="another run folder to compare with")
    options = parser.parse_args(arguments)
    run, other = load_run(options.run), load_run(options.against) if options.against else None
    comparison = comparison_lines(run, other) if other else ""  # before anything is written: it may refuse
    try:
        summary = measure(run)
        page = write_pages(run, summary)
        compared = write_comparison(run, other) if other else None
    except OSError as error:
        raise UserError(f"cannot write the report into {options.run}: {error.strerror}; make it writable") from error
    for problem in dict.fromkeys([*summary["problems"], *(other.problems if other else ())]):
        print(f"warning: {problem}", file=sys.stderr)
    print(summary_lines(summary))
    if compared:
        print(f"\n{comparison}\n\n{compared}")
    print(page)
    return 0


if __name__ == "__main__":
    run_command(main)
