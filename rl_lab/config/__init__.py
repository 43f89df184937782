"""The configuration of a run: `schema` says what there is, `load` reads it from YAML."""

from rl_lab.config.load import dump_changes, dump_config, load_config, resolve_config
from rl_lab.config.schema import RunConfig

__all__ = ["RunConfig", "dump_changes", "dump_config", "load_config", "resolve_config"]
