"""python -m rl_lab.serve CKPT [--port 8765] [--seed 0] [--device auto] [--code FILE.py:CLASS]

Answers observations with chunks of actions on a port of this machine, until Ctrl-C; the protocol stands in
`rl_lab.workers.serving`. The client for RoboTwin's own evaluation and for robots is one file,
envs/robotwin/deploy_policy.py (see docs/robotwin.md and docs/latency.md). The first line printed is the address. Exit
code: 0 ended by Ctrl-C or SIGTERM, 2 bad input.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from envs.by_name import find
from rl_lab.common.arguments import as_path, whole_number
from rl_lab.common.errors import CommandParser, UserError, run_command

DEFAULT_PORT = 8765


def _parse(arguments: Sequence[str] | None) -> tuple[Path, int, int, str, str | None]:
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=as_path, metavar="CKPT", help="a checkpoint folder")
    parser.add_argument("--port", type=whole_number(0, 65535), default=DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of the policy's noise")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--code", metavar="FILE.py:CLASS", help="of a policy of your own, docs/policies.md")
    options = parser.parse_args(arguments)
    return options.checkpoint, options.port, options.seed, options.device, options.code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    folder, port, seed, device, code = _parse(arguments)
    import torch

    from rl_lab.common.listening import ADDRESS
    from rl_lab.workers.serving import PolicyServer, PolicyService

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU; use --device auto")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        if code is not None:
            find(code, "class")
        service = PolicyService(folder, seed=seed, device=chosen, code=code)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        server = PolicyServer(service, port)
    except OSError as error:
        raise UserError(f"port {port} cannot be used: {error.strerror}; give another --port, or 0") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        print(f"{ADDRESS}:{server.port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    run_command(main)
