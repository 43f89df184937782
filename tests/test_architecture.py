"""Who may import whom: rl_lab -> {algos, envs, rewards}, and inside rl_lab downwards; see docs/architecture.md."""

import ast
import graphlib
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rl_lab", "envs", "algos", "rewards")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
KEYS = {"rl_lab/labels"}
"""Names on the pages that look like files and are none: a column of exported episodes."""
SHARED = {"envs.by_name", "envs.curves", "envs.options", "envs.types", "envs.se3"}
"""What the other libraries may use of `envs`."""
ALLOWED = {
    "rl_lab": {"rl_lab", "envs", "algos", "rewards"},
    "envs": {"envs"},
    "algos": {"algos", *SHARED},
    "rewards": {"rewards", *SHARED},
}
"""Modules of ours that a package may import, each with everything below it."""
LAYERS = (
    ("common",),
    ("config", "teleoperation"),
    ("model",),
    ("records",),
    ("curriculum", "graph", "learner"),
    ("reports", "workers"),
    ("rollouts",),
    ("training", "trl_backend"),
    ("contracts",),
    ("stages",),
    ("bench", "benchmarks", "check", "correct", "data", "doctor", "eval", "pool"),
    ("report", "rescore", "run", "serve", "watch"),
    ("__main__",),
)
"""Files and folders of `rl_lab` from the ground up; each imports what lies below it, and its own folder."""
MOST_FILES, MOST_LINES = 20, 450
"""Of a folder, its __init__.py included, and of a file. Commands are not counted: each is a file by its name, which is
what a user types, and only the first line of its help need be known to find it."""
FORBIDDEN_LIBRARIES = {
    "envs": {"torch", "ray", "transformers", "vllm", "trl"},
    "algos": {"ray", "transformers", "vllm", "trl", "gymnasium", "mujoco"},
    "rewards": {"ray", "transformers", "vllm", "trl", "gymnasium", "mujoco"},
}
OPTIONAL = {"sapien", "vllm", "lance", "tensorboard", "trackio", "mlflow"}
"""Installed by an extra, or by who wants that tracker, so imported inside functions."""
PLUGINS = {"rl_lab.model.serving"}
"""Code that an optional library loads; it may import that library at the top, and nothing else may import it there."""
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "pydantic_core": "pydantic",
    "huggingface_hub": "huggingface-hub",
}
"""Import name -> distribution, where they differ."""


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Absolute name, line and whether it is at the top level, of every import of a file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text())
    top_level = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in top_level
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno, id(node) in top_level


def module_name(path: Path) -> str:
    """Dotted name of a file of ours."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def is_below(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def room(module: str) -> str:
    """The file or folder of `rl_lab` that a module of it belongs to; the package itself is the ground."""
    return module.split(".")[1] if "." in module else ""


def layer(name: str) -> int:
    """Its number, from the ground up; -1 for the package itself."""
    return next((number for number, rooms in enumerate(LAYERS) if name in rooms), len(LAYERS) if name else -1)


def violations(path: Path) -> list[str]:
    """What a file imports against the rules, one line each."""
    own = room(module_name(path))
    package = path.relative_to(ROOT).parts[0]
    is_plugin = is_below(module_name(path), PLUGINS)
    found = []
    for name, line, top_level in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        owner = name.split(".")[0]
        if owner in PACKAGES and not is_below(name, ALLOWED[package]):
            found.append(f"{where} imports {name}; pass it in")
        if package == owner == "rl_lab" and room(name) != own and layer(room(name)) >= layer(own):
            found.append(f"{where} imports {name}; imports run downwards (LAYERS in this test)")
        if owner in FORBIDDEN_LIBRARIES.get(package, set()):
            found.append(f"{where} imports {owner}, which {package} must do without")
        if owner in OPTIONAL and top_level and not is_plugin:
            found.append(f"{where} imports {owner} at the top; it is an extra, import it where it is used")
        if is_below(name, PLUGINS) and top_level and not is_plugin:
            found.append(f"{where} imports {name} at the top; it needs an extra, import it where it is used")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_follows_the_arrows(path):
    assert violations(path) == []


def test_a_violation_is_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "algos").mkdir()
    (tmp_path / "envs").mkdir()
    bad = tmp_path / "algos" / "x.py"
    bad.write_text("def f():\n    from rl_lab.y import z\nimport envs.tabletop\nfrom envs import types\n")
    assert violations(bad) == [
        "algos/x.py:3 imports envs.tabletop; pass it in",
        "algos/x.py:2 imports rl_lab.y.z; pass it in",
    ]
    bad = tmp_path / "envs" / "y.py"
    bad.write_text("from . import types\nimport torch\n")
    assert violations(bad) == ["envs/y.py:2 imports torch, which envs must do without"]
    (tmp_path / "rl_lab" / "records").mkdir(parents=True)
    bad = tmp_path / "rl_lab" / "records" / "z.py"
    bad.write_text(
        "from rl_lab.records.y import a\nfrom rl_lab.common import files\n\n\ndef f():\n    import rl_lab.stages.rft\n"
    )
    assert violations(bad) == [
        "rl_lab/records/z.py:6 imports rl_lab.stages.rft; imports run downwards (LAYERS in this test)"
    ]


def test_every_file_and_folder_of_the_lab_has_a_layer():
    rooms = {room(module_name(path)) for path in MODULES if path.is_relative_to(ROOT / "rl_lab")} - {""}
    assert rooms == {name for rooms in LAYERS for name in rooms}


def test_no_file_imports_itself_through_others():
    """Lazy imports count: what waits until it is called is no less a circle."""
    files = {module_name(path): path for path in MODULES}
    below = {}
    for module, path in files.items():
        names = {name if name in files else name.rpartition(".")[0] for name, _, _ in imports(path)}
        below[module] = (names & set(files)) - {module}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    graphlib.TopologicalSorter(below).prepare()


def test_folders_and_files_can_be_held_in_mind():
    commands = {ROOT / "rl_lab" / f"{name}.py" for names in LAYERS[-2:] for name in names}
    folders = Counter(path.parent.relative_to(ROOT) for path in MODULES if path not in commands)
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in MODULES}
    assert {str(folder): files for folder, files in folders.items() if files > MOST_FILES} == {}
    assert {str(path): number for path, number in lines.items() if number > MOST_LINES} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_folders_that_the_pages_name_exist(page):
    named = set(re.findall(r"`((?:rl_lab|envs|algos|rewards|tests|experiments|docs)/[\w/.]+)`", page.read_text()))
    assert named and {name for name in named if not (ROOT / name).exists()} <= KEYS


def test_what_the_pages_import_is_there():
    """In code that a reader copies: `from MODULE import NAME, ...` of ours."""
    shown = re.compile(r"^ *from ((?:rl_lab|envs|algos|rewards)[\w.]*) import ([\w, ]+)", re.M)
    found = [match.groups() for page in PAGES for match in shown.finditer(page.read_text())]
    assert found
    for module, names in found:
        source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
        defined = {name for node in ast.parse(source).body for name in defines(node)}
        assert {name.strip() for name in names.split(",")} <= defined, module


def defines(node: ast.stmt) -> list[str]:
    """Names that a statement at the top level of a file binds, imports left out."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]


def test_every_library_that_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[=<>!~]", line)[0] for line in project["dependencies"]}
    imported = {name.split(".")[0] for path in MODULES for name, _, _ in imports(path)}
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES) - OPTIONAL - {"packaging"}
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} - declared == set()


def test_every_package_is_listed_by_name_so_that_workers_can_import_it():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {".".join(path.relative_to(ROOT).parts[:-1]) for path in MODULES}
    assert listed == present
    assert all((ROOT / Path(*name.split(".")) / "__init__.py").is_file() for name in present)
