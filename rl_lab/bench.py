"""python -m rl_lab.bench NAME [option=value ...]

Runs one of the measurements in `rl_lab/benchmarks` and prints its table under the hardware and versions it ran on. Exit
code: 0 done, 2 bad input.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Sequence
from typing import Any, get_type_hints

from pydantic import ValidationError, create_model

from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.common.machine import devices, git_commit, installed_versions
from rl_lab.common.reading import parse_yaml
from rl_lab.common.terminal import columns
from rl_lab.config.section import Section

BENCHMARKS = {
    "sim": "rl_lab.benchmarks.sim",
    "rpro": "rl_lab.benchmarks.rpro",
    "model": "rl_lab.benchmarks.model",
    "dtype": "rl_lab.benchmarks.dtype",
    "pool": "rl_lab.benchmarks.pool",
    "rollout": "rl_lab.benchmarks.rollout",
    "scaling": "rl_lab.benchmarks.scaling",
    "rft": "rl_lab.benchmarks.rft",
    "features": "rl_lab.benchmarks.features",
    "gpu": "rl_lab.benchmarks.gpu.checks",
}
"""Each module has `run(**options) -> list[dict]`, one dict a row of its table."""


def header() -> str:
    """Machine, versions and commit, two lines."""
    machine, versions = devices(), installed_versions()
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "mujoco", "ray", "numpy"))
    return (
        f"{machine['machine']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}\n{named}, {git_commit()}"
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as aligned columns; floats with four significant digits."""
    if not rows:
        return "(no rows)"
    names = list(dict.fromkeys(name for row in rows for name in row))
    return columns(names, [[_cell(row.get(name, "")) for name in names] for row in rows], left=len(names))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _options(name: str, function: Any, texts: Sequence[str]) -> dict[str, Any]:
    """`option=value` texts as keyword arguments of a benchmark; UserError for one that it does not have or take."""
    known = inspect.signature(function).parameters
    hints = get_type_hints(function, include_extras=True)
    fields: Any = {key: (hints.get(key, Any), option.default) for key, option in known.items()}
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise UserError(f"bench {name} has no option {text!r}; it has {', '.join(known) or 'none'} (option=value)")
        options[key] = parse_yaml(value, f"option {text!r}")
    try:
        read = create_model("Options", __base__=Section, **fields).model_validate_json(json.dumps(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"bench {name}: {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
    return {key: getattr(read, key) for key in options}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its table."""
    parser = CommandParser(__doc__)
    parser.add_argument("name", choices=list(BENCHMARKS))
    parser.add_argument("options", nargs="*", metavar="option=value")
    parsed = parser.parse_args(arguments)
    run = importlib.import_module(BENCHMARKS[parsed.name]).run
    options = _options(parsed.name, run, parsed.options)
    print(header())
    print(table(run(**options)))
    return 0


if __name__ == "__main__":
    run_command(main)
