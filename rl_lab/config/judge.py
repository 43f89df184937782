"""Settings of a judge that the run serves itself."""

from __future__ import annotations

from typing import Literal

from rl_lab.config.section import PositiveFloat, Rows, Seconds, Section, Tokens

JUDGE_URL = "RL_LAB_JUDGE_URL"
"""Environment variable with the address of the run's own judge, its key in it as a password."""
JUDGE_KEY = "RL_LAB_JUDGE_KEY"
"""Environment variable of the judge's server: the header `Authorization` that it asks for."""
JUDGE_MODEL = "judge"
"""The name under which it is served."""


class JudgeServerConfig(Section):
    """A model that vLLM serves for this run, to score open answers and traces; it is placed as `placement.judges` says.

    rewards.judge asks it with `{base_url: $RL_LAB_JUDGE_URL, model: judge}`.
    """

    path: str
    """Folder of any chat model that vLLM serves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: Tokens = 4096
    """Tokens of a question, with the answer to be judged, and of the verdict."""
    max_num_seqs: Rows = 16
    kv_cache_gib: PositiveFloat = 1.0
    start_timeout_s: Seconds = 900.0
    """Until it answers for the first time."""
