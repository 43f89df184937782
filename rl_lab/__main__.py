"""rl-lab COMMAND ...

The commands of the lab, each also `python -m rl_lab.COMMAND`; `rl-lab COMMAND --help` says what one takes. Experiments
of the lab may be named without folder and ending: `rl-lab run flowpro_smoke --plan`.
Exit code: that of the command; 2 bad input.
"""

from __future__ import annotations

import ast
import runpy
import sys
import textwrap
from pathlib import Path

from envs.options import suggestion
from rl_lab.common.errors import UserError, run_command


def commands() -> dict[str, str]:
    """What each command does, in the first sentence of its help, by its name."""
    texts = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}
    found = {name: ast.get_docstring(ast.parse(text)) for name, text in texts.items() if "run_command(main)" in text}
    return {name: _first_sentence((text or "").partition("\n")[2]) for name, text in found.items()}


def _first_sentence(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split()).partition(". ")[0].removesuffix(".")


def main() -> int:
    """Run a command as `python -m` does."""
    name, known = next(iter(sys.argv[1:]), "--help"), commands()
    if name in ("-h", "--help"):
        print(__doc__.strip(), end="\n\n")
        print("\n".join(f"  {name:9} {textwrap.shorten(text, 100, placeholder=' …')}" for name, text in known.items()))
        return 0
    if name not in known:
        raise UserError(f"there is no command {name!r}{suggestion(name, known)}")
    del sys.argv[1]
    runpy.run_module(f"rl_lab.{name}", run_name="__main__", alter_sys=True)
    return 0


def script() -> None:
    """The console command."""
    run_command(main)


if __name__ == "__main__":
    script()
