"""Configs in `config.json`, a file that may be damaged: every field has its type, or is refused by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, create_model
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from rl_lab.reading import fit, read_object

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class _Stored(BaseModel):
    """What a config may say beside its own fields, and is read."""

    model_config = ConfigDict(protected_namespaces=())

    model_type: str | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None
    attention_head_dim: int | None = None
    rope_parameters: dict[str, Any] | None = None


def read_config_file(folder: Path) -> dict[str, Any]:
    """The object in a checkpoint folder's config.json. UserError where there is none, or it is no object."""
    return read_object(Path(folder) / CONFIG_NAME)


@lru_cache
def _own_fields(kind: type[PretrainedConfig]) -> type[BaseModel]:
    """The fields that a config adds to those of transformers, but for its sections, as a model that checks types."""
    inherited = {item.name for item in fields(PretrainedConfig)} | {*kind.sub_configs}
    hints = inspect.get_annotations(kind, eval_str=True)
    own: dict[str, Any] = {item.name: (hints[item.name], None) for item in fields(kind) if item.name not in inherited}
    return create_model(kind.__name__, __base__=_Stored, **own)


class StoredConfig(PretrainedConfig):
    """A config that checks what it reads."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # no other way to read
        """Read a folder or hub id. UserError, naming the field, for a file of a folder that does not hold this."""
        if Path(name).is_dir():
            cls.check_stored(read_config_file(Path(name)), str(Path(name) / CONFIG_NAME))
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def check_stored(cls, content: Mapping[str, Any], where: str) -> None:
        """UserError, in the name of `where`, for a field of another type; unknown fields are others' affair."""
        known = _own_fields(cls)  # type: ignore[arg-type]  # classes can be hashed
        fit({key: value for key, value in content.items() if key in known.model_fields}, known, where)
