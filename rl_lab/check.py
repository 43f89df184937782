"""python -m rl_lab.check KIND FILE.py:NAME [key=value ...]

Holds code of your own to the contract of its kind: corrector, detector (of failures), environment, objective, policy,
reward, scheme (of a curriculum). Prints a line for everything that holds and stops at the first that does not.
`key=value` are its settings, as its page says. See docs/own.md.
Exit code: 0 all holds, 1 something does not (one line), 2 bad input.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from envs.by_name import absolute, blamed, find
from rl_lab.common.errors import CommandParser, RunError, UserError, run_command
from rl_lab.common.reading import parse_yaml
from rl_lab.contracts.corrections import check_corrector, check_detector
from rl_lab.contracts.environments import check_environment
from rl_lab.contracts.objectives import check_objective
from rl_lab.contracts.policies import check_policy
from rl_lab.contracts.rewards import check_reward
from rl_lab.contracts.schemes import check_scheme

CONTRACTS: dict[str, Callable[[str, dict[str, Any]], Iterator[str]]] = {
    "corrector": check_corrector,
    "detector": check_detector,
    "environment": check_environment,
    "objective": check_objective,
    "policy": check_policy,
    "reward": check_reward,
    "scheme": check_scheme,
}
"""By kind: (name of the code, its settings) -> what holds, in sentences; ValueError where something does not."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    parser = CommandParser(__doc__)
    parser.add_argument("kind", metavar="KIND", choices=CONTRACTS)
    parser.add_argument("source", metavar="FILE.py:NAME")
    parser.add_argument("settings", metavar="key=value", nargs="*")
    options = parser.parse_args(arguments)
    try:
        find(options.source, options.kind)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        with blamed():
            for sentence in CONTRACTS[options.kind](absolute(options.source), _settings(options.settings)):
                print(f"ok: {sentence}", flush=True)
    except UserError:
        raise
    except ValueError as error:
        raise RunError(f"{options.source} is no {options.kind}: {error}") from error
    except Exception as error:  # what it gave went wrong in the lab's own code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"what it gives led to {type(error).__name__}: {error}, in {frame.filename}:{frame.lineno}"
        raise RunError(f"{options.source} is no {options.kind}: {said}") from error
    print(f"{options.source} keeps its contract: {options.kind}")
    return 0


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """From `key=value`, the values read as YAML."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{text!r} is no setting; write key=value, such as beta=0.5")
        found[key] = parse_yaml(value, text)
    return found


if __name__ == "__main__":
    run_command(main)
