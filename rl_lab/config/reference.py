"""What every key of an experiment means, read from the fields themselves: for a terminal, a page and editors.

A field's meaning is the docstring below it, a section's that of its class; type, bounds and default are the field's.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from envs.options import suggestion
from rl_lab.common.errors import UserError
from rl_lab.config.load import BACKENDS
from rl_lab.config.pipeline import FilePart
from rl_lab.config.schema import RunConfig

Schema = dict[str, Any]
UNITS = {"Seconds": "seconds", "Pixels": "pixels", "Tokens": "tokens", "ControlSteps": "control steps"}
"""By the name of a number's type,"""
SUFFIXES = {"_m": "metres", "_s": "seconds", "_gib": "GiB"}
"""or by the end of its key."""
ONE_WORD: dict[str, Callable[[Schema], Schema]] = {
    "CorrectorConfig": lambda section: section["properties"]["kind"],
    "Placement": lambda section: section["properties"]["device"],
    "SpreadConfig": lambda section: {"type": "string"},
}
"""Sections that a file may write as one word, and what that is."""
EITHER = {("GRPOOptions", "scale_rewards"): {"type": "boolean"}}
"""Keys that take values of another library as well."""


@dataclass
class SectionReference:
    """A section and the places where it stands in a file."""

    kind: type[BaseModel]
    places: list[str] = field(default_factory=list)
    """Dotted keys; `*` for a name that the file gives, "" for the file itself."""

    @property
    def meaning(self) -> str:
        """What it is, one line."""
        return _in_one_line(inspect.getdoc(self.kind) or "")


@functools.cache
def meanings(kind: type[BaseModel]) -> Mapping[str, str]:
    """The docstring below each field of a section, one line; a section that has none means what its class says."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
            for statement, text in zip(body, body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[statement.target.id] = _in_one_line(ast.literal_eval(text.value))  # type: ignore[union-attr]
    for name, option in kind.model_fields.items():
        for section in [] if name in found else _sections_in(option.annotation):
            found[name] = SectionReference(section).meaning
    return found


def references() -> list[SectionReference]:
    """All sections, each once, in the order of the file."""
    found: dict[type[BaseModel], SectionReference] = {}

    def walk(kind: type[BaseModel], place: str) -> None:
        is_new = kind not in found
        found.setdefault(kind, SectionReference(kind)).places.append(place)
        for name, option in kind.model_fields.items() if is_new else ():
            for section in _sections_in(option.annotation):
                walk(section, ".".join(filter(None, (place, name, "*" if _is_named(option.annotation) else ""))))

    walk(RunConfig, "")
    return list(found.values())


def keys_text(place: str) -> str:
    """The keys of one section for a terminal, `place` its dotted key, "" for the file; UserError for another one."""
    known = {name: section for section in references() for name in section.places}
    if place not in known:
        raise UserError(f"there is no section {place!r}{suggestion(place, [name for name in known if name])}")
    section = known[place]
    lines = [section.meaning]
    for key in section.kind.model_fields:
        default = _default(section.kind, key)
        begin = ".".join(filter(None, (place, key)))
        lines += ["", f"{begin}: {_values(section.kind, key)}; " + (f"default {default}" if default else "required")]
        lines.append(textwrap.indent(textwrap.fill(meanings(section.kind)[key], 112), "    "))
    return "\n".join(lines)


PAGE = """# Configuration

Every key of an experiment, from the fields themselves: `python -m rl_lab.stages.reference` writes this page and
`experiments/schema.json`, by which editors complete and check a file. `python -m rl_lab.run --keys SECTION` prints one
section. [Your own YAML from nothing](own-yaml.md) is the way in.

A default is from where the text of its key or section says. All others were chosen here, for nano models on a table
top or on generated questions; [experiments/README.md](../experiments/README.md) puts the papers' values beside them.

`tabletop:` and `robotwin:` take all of these keys as well: what they say holds on that backend only. Keys of `env` may
stand in them directly.
"""


def page() -> str:
    """All sections in Markdown."""
    parts, sections = [PAGE], references()
    anchors = {section.kind: section.places[0].replace(".", "").replace("*", "") for section in sections}
    for section in sections:
        title, *others = section.places
        also = f" Also `{'`, `'.join(others)}`." if others else ""
        source = section.kind.__module__.replace(".", "/")
        parts.append(f"## {f'`{title}`' if title else 'The file'}\n\n{section.meaning}{also} From `{source}.py`.\n")
        rows = []
        for key, option in section.kind.model_fields.items():
            values = _cell(_values(section.kind, key))
            for inner in _sections_in(option.annotation):
                values = values.replace("a section", f"[section](#{anchors[inner]})", 1)
            default, text = _code(_default(section.kind, key)), _cell(meanings(section.kind)[key])
            rows.append(f"| `{key}` | {values} | {default} | {text} |")
        parts.append("\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def json_schema(words: Callable[[FilePart], Sequence[str]]) -> Schema:
    """The JSON schema of an experiment; `words`: the stages that each part of a file may name."""
    root = RunConfig.model_json_schema()
    sections = {section.kind.__name__: section.kind for section in references()}
    definitions = {name: root["$defs"][name] for name in sections if name in root["$defs"]}
    for name, found in [("RunConfig", root), *definitions.items()]:
        for key, value in found["properties"].items():
            value["description"] = meanings(sections[name])[key]
    _name_words(root["properties"]["stages"], words("stages"))
    _name_words(definitions["Repeat"]["properties"]["of"], words("repeat"))
    _name_words(definitions["Gate"]["properties"]["otherwise"], words("branch"))
    for (name, key), other in EITHER.items():
        definitions[name]["properties"][key] = _either(other, definitions[name]["properties"][key])
    for name, word in ONE_WORD.items():
        root["$defs"][name] = _either(word(definitions[name]), definitions[name])
    settings = {key: value for key, value in root["properties"].items() if key != "name"}
    override = {"type": "object", "additionalProperties": False}
    override |= {"properties": settings | definitions["EnvConfig"]["properties"]}
    root["$defs"]["Override"] = override
    for backend in BACKENDS:
        root["properties"][backend] = {
            "description": f"What holds on {backend} only.",
            "anyOf": [{"$ref": "#/$defs/Override"}, {"type": "null"}],
        }
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "An experiment of rl-lab"}
    return head | _plain(root) | {"required": ["name"]}


def _either(one: Schema, other: Schema) -> Schema:
    return {"anyOf": [one, other]} | {key: other[key] for key in ("description", "default") if key in other}


def _name_words(schema: Schema, words: Sequence[str]) -> None:
    """Where a schema has any text, or any list of it: one of these."""
    for option in [schema, *schema.get("oneOf", ())]:
        items = option.get("items", {})
        for text in [items, *items.get("oneOf", ())]:
            if text.get("type") == "string" and "enum" not in text:
                text["enum"] = list(words)


def _plain(schema: Any) -> Any:
    """Without pydantic's titles and tags, which say nothing to an editor, and with the older name of definitions."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: value
        for key, value in schema.items()
        if key != "discriminator" and not (key == "title" and isinstance(value, str))
    }
    if "prefixItems" in kept:  # of draft 2020-12, which editors of YAML do not read
        kept["items"] = kept.pop("prefixItems")
    return {
        {"$defs": "definitions"}.get(key, key): value.replace("#/$defs/", "#/definitions/")
        if key == "$ref"
        else _plain(value)
        for key, value in kept.items()
    }


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _is_named(annotation: Any) -> bool:
    """Whether a field holds sections by names of the file's own."""
    parts = (annotation, *get_args(annotation))
    return any(getattr(part, "__origin__", None) in (dict, Mapping) or part is Mapping for part in parts)


@functools.cache
def _schema_of(kind: type[BaseModel]) -> Schema:
    return kind.model_json_schema()


def _values(kind: type[BaseModel], key: str) -> str:
    """Type, bounds and unit of a key in words."""
    schema = _schema_of(kind)
    alias = next(owner.__annotations__[key] for owner in kind.__mro__ if key in getattr(owner, "__annotations__", {}))
    units = [unit for name, unit in UNITS.items() if re.search(rf"\b{name}\b", str(alias))]
    units = units or [unit for end, unit in SUFFIXES.items() if key.endswith(end)]
    return "; ".join([_in_words(schema["properties"][key], schema.get("$defs", {})), *units[:1]])


def _in_words(schema: Schema, definitions: Schema) -> str:
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_in_words(option, definitions) for option in options))
    if "$ref" in schema:
        found = definitions[schema["$ref"].rpartition("/")[2]]
        return "a section" if "properties" in found else _in_words(found, definitions)
    if "const" in schema or "enum" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return {"integer": "whole number", "number": "number"}[kind] + _bounds(schema)
    if kind == "array":
        parts = schema.get("prefixItems", [schema.get("items", {})])
        inside = ", ".join(dict.fromkeys(_in_words(part, definitions) for part in parts))
        return f"list of {f'{len(parts)}: ' if 'prefixItems' in schema else ''}{inside}"
    if kind == "object":
        return f"names with {_in_words(schema.get('additionalProperties', {}), definitions)}"
    return {"string": "text", "boolean": "true or false", "null": "null"}.get(str(kind), "anything")


def _bounds(schema: Schema) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    above, below = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
    if low is None or high is None:
        return ""
    return f" {'above ' if above else ''}{low:.15g} {'and below' if below else 'to'} {high:.15g}"


def _default(kind: type[BaseModel], key: str) -> str:
    """As a file would write it; "" where there is none."""
    option = kind.model_fields[key]
    if option.default is PydanticUndefined:
        return ""
    value = option.default
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    plain = kind.model_construct(**{key: value}).model_dump(mode="json", include={key}, warnings=False)[key]
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "none: required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
