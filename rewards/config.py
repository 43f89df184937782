"""Constants, weights and limits of the rewards. HY-Embodied-0.5 publishes no formula and no constant: all are ours."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def _check(config: Any, names: tuple[str, ...], low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """ValueError unless every named field is finite and in low..high (above: not low itself)."""
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= min(high, sys.float_info.max) and not (above and value == low)):
            upper = f" and at most {high:g}" if high < math.inf else ""
            raise ValueError(f"{name} is {value}; it must be {'above' if above else 'at least'} {low:g}{upper}")


@dataclass(frozen=True)
class BoxesConfig:
    """Hungarian-matched IoU; `rewards.verifiers.boxes_reward`."""

    missing_penalty: float = 1.0
    """Weight of a true box without a partner in the denominator; >= 0."""
    extra_penalty: float = 1.0
    """Weight of an answered box without a partner in the denominator; >= 0."""

    def __post_init__(self) -> None:
        _check(self, ("missing_penalty", "extra_penalty"))


@dataclass(frozen=True)
class DistanceConfig:
    """exp(-d / scale); `rewards.verifiers.point_reward` and `points_reward`."""

    scale: float = 0.1
    """Distance at which the reward is 1/e, in image diagonals; > 0."""

    def __post_init__(self) -> None:
        _check(self, ("scale",), above=True)


@dataclass(frozen=True)
class TrajectoryConfig:
    """Shape and end of a path; `rewards.trajectory.trajectory_reward`."""

    frechet_weight: float = 0.7
    dtw_weight: float = 0.0
    """Dynamic time warping, the mean instead of the largest deviation; off by default."""
    endpoint_weight: float = 0.3
    scale: float = 0.1
    """Of Frechet and DTW distance, in image diagonals; > 0."""
    endpoint_scale: float = 0.1
    """Of the distance between the last points, in image diagonals; > 0."""
    waypoints: int = 15
    """Both paths are resampled to this many points, 2..64."""

    def __post_init__(self) -> None:
        _check(self, ("frechet_weight", "dtw_weight", "endpoint_weight"))
        _check(self, ("scale", "endpoint_scale"), above=True)
        _check(self, ("waypoints",), low=2, high=64)
        if self.frechet_weight + self.dtw_weight + self.endpoint_weight <= 0:
            raise ValueError("frechet_weight, dtw_weight and endpoint_weight are all 0; give one of them a weight")


@dataclass(frozen=True)
class NumberConfig:
    """exp(-rate * relative error); `rewards.verifiers.number_reward`."""

    rate: float = 2.0
    floor: float = 0.01
    """Smallest denominator of the relative error, in the unit of the question, so that a true 0 is no division by 0."""

    def __post_init__(self) -> None:
        _check(self, ("rate", "floor"), above=True)


@dataclass(frozen=True)
class CountConfig:
    """Exact match with optional partial credit; `rewards.verifiers.count_reward`."""

    partial_credit: float = 0.0
    """Reward of a count that is wrong by almost nothing, 0..1; falls linearly to 0 at an error of 100 %."""

    def __post_init__(self) -> None:
        _check(self, ("partial_credit",), high=1)


@dataclass(frozen=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint that scores open answers; `rewards.judge.Judge`."""

    base_url: str
    """As OpenAI clients take it, with the version: `http://host:port/v1`; or `$NAME`, an environment variable. User,
    password and query only in a variable: configs are stored and shown."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; None sends no key."""
    structured_output: bool = True
    """Ask for JSON by `response_format`; off for endpoints that refuse the field. The reply is checked anyway."""
    max_tokens: int = 512
    temperature: float = 0.0
    retries: int = 2
    """Further attempts after a refused connection, a status 429 or 5xx, or a malformed verdict."""
    backoff_s: float = 0.5
    """Pause before the first retry; doubles with each."""
    timeout_s: float = 60.0
    """For one sample, all its attempts together."""
    batch_timeout_s: float = 300.0
    """For one call; what is not judged by then is masked."""
    concurrency: int = 8
    """Requests in flight."""

    def __post_init__(self) -> None:
        _check(self, ("temperature", "retries", "backoff_s"))
        _check(self, ("timeout_s", "batch_timeout_s"), above=True)
        _check(self, ("max_tokens", "concurrency"), low=1)
        if set("@?#") & set(self.base_url):
            raise ValueError(
                "base_url holds a user, a password or a query, which config.yaml would show; put the address into an "
                "environment variable and give base_url: $NAME"
            )
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            raise ValueError("api_key_env must be the name of an environment variable that holds the key, not a key")
        if not self.base_url.startswith(("http://", "https://", "$")):
            raise ValueError(f"base_url is {self.base_url!r}; it must start with http:// or https://, or be $NAME")


@dataclass(frozen=True)
class GuardConfig:
    """Limits of reward functions that are not ours; `rewards.guard.Guard`."""

    timeout_s: float = 10.0
    """For one sample; the process is killed then."""
    batch_timeout_s: float = 120.0
    """For all samples of a call together, first start of the process apart."""
    start_timeout_s: float = 120.0
    """For starting the process and importing the function in it."""
    memory_gib: float | None = 8.0
    """Address space of the process, and of each that it starts; None: no limit, which a function on a GPU needs."""

    def __post_init__(self) -> None:
        _check(self, ("timeout_s", "batch_timeout_s", "start_timeout_s"), above=True)
        if self.memory_gib is not None:
            _check(self, ("memory_gib",), low=0.1, high=2**20)


@dataclass(frozen=True)
class ModelConfig:
    """A trained reward model; `rewards.rubric`."""

    path: str
    """Its folder, as a run leaves it."""
    abstain_above: float | None = None
    """Answers on which members disagree by more (standard deviation, 0..0.5) are masked; None: never."""

    def __post_init__(self) -> None:
        if self.abstain_above is not None:
            _check(self, ("abstain_above",), high=0.5)


@dataclass(frozen=True)
class RewardConfig:
    """All of it. A reward is the mean of its parts weighted by `weights`."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"answer": 1.0, "format": 0.0})
    """Of the parts: `answer` (by reward type), `format`, and each function by its name; >= 0."""
    functions: Mapping[str, str] = field(default_factory=dict)
    """Functions of one's own by name, as FILE.py:FUNCTION or MODULE:FUNCTION; see `rewards.functions`."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Learned reward models by name; each needs a weight."""
    boxes: BoxesConfig = BoxesConfig()
    point: DistanceConfig = DistanceConfig()
    points: DistanceConfig = DistanceConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    number: NumberConfig = NumberConfig()
    count: CountConfig = CountConfig()
    judge: JudgeConfig | None = None
    """Needed for items of type `open`."""
    guard: GuardConfig = GuardConfig()

    def __post_init__(self) -> None:
        wrong = {name: weight for name, weight in self.weights.items() if not 0 <= weight < math.inf}
        if wrong:
            raise ValueError(f"weights has {wrong}; a weight is a number >= 0")
        if not any(self.weights.values()):
            raise ValueError("weights are all 0, so nothing is rewarded; give a part a weight above 0")


def read_config(kind: type[Config], values: Mapping[str, Any], where: str = "rewards") -> Config:
    """A config object from plain data, e.g. a section of a YAML file.

    ValueError, one line with the dotted key: for an unknown key with the nearest known one, for a missing key, for a
    value of the wrong type (only whole numbers become floats, and lists tuples) and for one out of range.
    """
    types = get_type_hints(kind)
    inside = f"{where}." if where else ""
    for key in values:
        if key not in types:
            raise ValueError(f"{inside}{key} is not a known key{suggestion(str(key), types)}")
    settings = {key: _read_value(types[key], value, f"{inside}{key}") for key, value in values.items()}
    for setting in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = setting.default is setting.default_factory is dataclasses.MISSING
        if required and setting.name not in settings:
            raise ValueError(f"{inside}{setting.name} is missing")
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?` for the nearest known name, else a list of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def _read_value(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ValueError(f"{where} is {value!r}; it must be a list of {len(parts)} numbers")
        return tuple(_read_value(part, entry, where) for part, entry in zip(parts, value, strict=True))
    if get_origin(kind) is Mapping:
        _, entry_kind = get_args(kind)
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must map names to values of type {entry_kind.__name__}")
        return {str(name): _read_value(entry_kind, entry, f"{where}.{name}") for name, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a section with keys of its own")
        return read_config(kind, value, where)  # type: ignore[arg-type]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    try:
        return kind(value)
    except OverflowError as error:
        raise ValueError(f"{where} is a number that no float can hold") from error
