"""python -m rl_lab.watch RUN [--port 8767] [--every 5]

Shows the report of a run folder as a page that follows the run: what its stages and workers do now, and below that
curves, bands of the pool, pairs, films, answers and verdict as far as they are known. Open the address that is printed;
it is answered on this machine alone. A run on another machine is watched through its folder, mounted here. Nothing is
written into the folder. Ends by Ctrl-C or SIGTERM. Exit code: 0 ended, 2 bad input.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import suppress

from rl_lab.common.arguments import as_path, whole_number
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.reports.live_report import LiveReport, LiveServer

DEFAULT_PORT = 8767


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    parser = CommandParser(__doc__)
    parser.add_argument("run", type=as_path, metavar="RUN", help="a run folder")
    parser.add_argument("--port", type=whole_number(0, 65535), default=DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument("--every", type=whole_number(1, 3600), default=5, metavar="SECONDS", help="between two looks")
    options = parser.parse_args(arguments)
    report = LiveReport(options.run, options.every)
    try:
        server = LiveServer(report, options.port)
    except OSError as error:
        raise UserError(f"port {options.port} cannot be used: {error.strerror}; give another --port, or 0") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=report.follow, daemon=True).start()
    with server, suppress(KeyboardInterrupt):
        print(f"open {server.address}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    run_command(main)
