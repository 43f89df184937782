"""The configuration of a run: `schema` says what there is, `load` reads it from YAML."""
