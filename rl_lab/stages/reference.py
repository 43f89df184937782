"""python -m rl_lab.stages.reference

Writes what the fields of the configuration say: docs/configuration.md, and experiments/schema.json for editors. To be
run whenever a key or a stage is another one; a test compares both files. Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import json
from pathlib import Path

from rl_lab.common.errors import CommandParser, run_command
from rl_lab.common.files import ROOT, write_whole
from rl_lab.config import reference
from rl_lab.stages.kinds import REGISTRY


def files() -> dict[Path, str]:
    """Both files, and what they should hold."""
    schema = json.dumps(reference.json_schema(REGISTRY.words), indent=1)
    return {
        ROOT / "docs" / "configuration.md": reference.page(),
        ROOT / "experiments" / "schema.json": schema + "\n",
    }


def main() -> int:
    """Run the command."""
    CommandParser(__doc__).parse_args()
    for path, text in files().items():
        write_whole(path, text)
        print(path)
    return 0


if __name__ == "__main__":
    run_command(main)
