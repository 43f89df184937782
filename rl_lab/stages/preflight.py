"""Checks that need more than the config file: does this machine, and does the checkpoint, fit what it asks for?

Episodes that a run is examined on are none of those that it is given to learn from.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from algos.alarms import cap_warning
from algos.policy import PolicySizes
from envs.by_name import OwnCodeError, blamed
from envs.types import BIMANUAL, Layout
from rewards.config import RewardConfig
from rl_lab.common.errors import UserError
from rl_lab.common.reading import parse_json, read_text
from rl_lab.config.actions import FilesConfig
from rl_lab.config.environments import check_own_environment, environment_layout
from rl_lab.config.language import JUDGE_MODEL, JUDGE_URL, file_key, is_imitated
from rl_lab.config.robotwin import check_robotwin
from rl_lab.config.schema import RunConfig
from rl_lab.contracts.samples import SamplePolicy
from rl_lab.graph.nodes import Place
from rl_lab.learner.actions import method_objective, num_commands, sized_config
from rl_lab.model.checkpoint import KINDS, check_language_model, check_named, check_policy
from rl_lab.model.loading import check_headers
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.sharding import check_compiler
from rl_lab.model.vlm_config import read_config_file
from rl_lab.records.question_files import has_open_questions
from rl_lab.records.sources import find_recordings, glance, spread
from rl_lab.reports.hub import check_hub
from rl_lab.rollouts.answering import make_rewards
from rl_lab.stages.kinds import expand, settings_of
from rl_lab.stages.own_code import check_corrections, check_own_code, check_own_policy, check_schemes
from rl_lab.workers.cluster import cluster_nodes
from rl_lab.workers.placement import Node, bundles, joins_cluster, lacking
from rl_lab.workers.policy import check_corrector, read_corrections

SHOWN = 20


def examined(config: RunConfig) -> set[Place]:
    """The episodes of the evaluations and, of joint training, of its examinations."""
    return set().union(*(kind.examined(config) for kind in config.kinds))


def check_learned(config: RunConfig, where: str, places: Iterable[Place]) -> None:
    """UserError, naming them, for given episodes that the run is examined on."""
    shared = sorted(set(places) & examined(config))
    if shared:
        listed = ", ".join(f"{task} {variant} {seed}" for task, variant, seed in shared[:SHOWN])
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise UserError(
            f"{where}: {len(shared)} episodes are those that the run is examined on (task, variant, seed: {listed}"
            f"{more}); leave them out, or examine on other seeds (eval.seeds is {config.eval.seeds})"
        )


def check_machine(config: RunConfig) -> None:
    """Raise UserError, before anything is written, for a run that cannot work on this machine."""
    check_settings(config)
    for line in (*lacking_here(config), *lacking_machines(config)):
        raise UserError(line)


def check_settings(config: RunConfig) -> None:
    """UserError for what no machine could run: settings, files and own code; and for a simulator that is not there. Of
    a study in every of its worlds."""
    for name, rewards in (config.study.rewards if config.study is not None else {}).items():
        _check_rewards(f"study.rewards.{name}", rewards)
    for own in settings_of(config):
        _check_settings(own)


def _check_settings(config: RunConfig) -> None:
    check_own_code(config)
    if config.learns_actions:
        if config.runs_episodes and config.env.backend == "robotwin":
            check_robotwin(config)
        if config.runs_episodes and config.env.is_own:
            check_own_environment(config)
        _check_model(config)
        _check_objectives(config)
        _check_exploring(config)
        if config.collects_pairs:
            check_corrections(config)
        _check_compiling(config)
    if config.learns_language:
        check_schemes(config)
        _check_language(config)
    _check_ranks(config)


def lacking_here(config: RunConfig) -> list[str]:
    """What this machine lacks of software and tokens, one line each; all else can be checked and planned without it."""
    return _complaints(
        lambda: _check_trackers(config), lambda: _check_hub(config), lambda: _check_vllm(config), _check_gl
    )


def lacking_machines(config: RunConfig, declared: Sequence[Node] = ()) -> list[str]:
    """What the placement asks for and the machines lack: those `declared`, those of the cluster that RAY_ADDRESS
    names, or this one."""
    return _complaints(lambda: _check_placement(config, declared))


def _complaints(*checks: Callable[[], None]) -> list[str]:
    lines = []
    for check in checks:
        try:
            check()
        except UserError as error:
            lines.append(str(error))
    return lines


def _check_trackers(config: RunConfig) -> None:
    """The packages of the trackers are installed."""
    for name in config.trackers_used:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; run pip install {name}, or leave it out of trackers")


def _check_hub(config: RunConfig) -> None:
    if config.hub is not None:
        check_hub(config.hub, expand(config))


def _sizes(config: RunConfig) -> tuple[PolicySizes, int]:
    """What the policy that SFT starts from is made for, and the commands of its chunks."""
    model = config.model
    if model.code is not None:
        own = check_own_policy(config)
        return own, own.n_action_steps
    if model.path is not None:
        check_named("model.path", Path(model.path), check_policy)
    try:
        return sized_config(model), num_commands(model)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


_PROBE = ("sft.probe_weight", "set it to 0")


def _check_files(config: RunConfig, files: FilesConfig, image_size: int, layout: Layout | None) -> None:
    """There are episodes in every file and folder, all of one rate and none to be examined on, and those looked at are
    sound, with simulator truth if a probe needs it."""
    try:
        found, _ = find_recordings(**files.reading(), image_size=image_size)
    except UserError as error:
        raise UserError(f"demos.files: {error}") from error
    if not found:
        raise UserError(f"demos.files.index: {files.index} calls every episode of {', '.join(files.paths)} dirty")
    glance(found, files.skip_broken)
    if layout is not None and (theirs := found[0].layout()) is not None and not theirs.is_like(layout):
        raise UserError(f"demos.files: {found[0].path} has {theirs}, but the environment has {layout}")
    if (config.sft.probe_weight > 0 or config.model.reads_truth) and config.reads("sft"):
        lacking = next((recording.path for recording in spread(found) if not recording.has_truth()), None)
        if lacking is not None:
            wanted, mend = ("model.preset state", "choose another") if config.model.reads_truth else _PROBE
            raise UserError(
                f"{wanted} needs ground truth of the simulator, which {lacking} (demos.files) has not; {mend}"
            )
    check_learned(config, "demos.files", filter(None, (recording.place() for recording in found)))


def _check_given_policy(config: RunConfig, num_tokens: int) -> None:
    """Without SFT nothing fits the statistics of states and chunks: the checkpoint must have them."""
    if config.model.path is None or config.reads("sft") or not config.needs_policy:
        return
    stats = ActionStats.find(Path(config.model.path))
    if stats is None or stats.num_tokens != num_tokens:
        found = "no statistics" if stats is None else f"statistics of {stats.num_tokens} action tokens"
        needed = f"but predicts {num_tokens}, so it cannot act; add sft to stages"
        raise UserError(f"model.path: {config.model.path} has {found} {needed}")


def _check_layout(config: RunConfig, sizes: PolicySizes, chunk: int, layout: Layout) -> None:
    """The policy acts in these environments, or can learn to."""
    if not (config.reads("sft") or not config.needs_policy or sizes.layout.is_like(layout)):
        raise UserError(f"model.path: {config.model.path} knows {sizes.layout}, but the environment has {layout}")
    if layout.numbers != "ee" and sizes.n_action_steps != chunk:
        raise UserError(
            "model: half of its action tokens are absolute poses, but the commands of the environment are none; start "
            "from a preset or a checkpoint without"
        )
    if layout.numbers == "raw" and config.model.first_slot == "current":
        raise UserError(
            "model.first_slot is current, but the state holds no command where numbers are raw; set it to next"
        )
    try:
        sizes.learn(layout)
    except ValueError as error:
        raise UserError(f"model: the environment has {layout}: {error}") from error


def _check_model(config: RunConfig) -> None:
    """The sizes of the model fit what the stages do with it."""
    sizes, chunk = _sizes(config)
    rollback = config.collect.rollback_steps
    layout = environment_layout(config.env) if config.runs_episodes else None
    _check_given_policy(config, sizes.n_action_steps)
    if config.demos.files is not None:
        _check_files(config, config.demos.files, sizes.image_size, layout)
    if layout is not None:
        _check_layout(config, sizes, chunk, layout)
    if config.collects_pairs and config.collect.corrector.path is not None:
        corrector, acting = config.collect.corrector, layout or BIMANUAL
        check_corrector(corrector, config.env.image_size, config.collect.execute, acting, config.policy_code)
        if corrector.kind == "recorded":
            places = read_corrections(Path(corrector.path or ""), acting)
            check_learned(config, "collect.corrector.path", (place[:3] for place in places))
    if config.env.image_size != sizes.image_size:
        wanted = f"env.image_size is {config.env.image_size} but the model takes {sizes.image_size} pixels"
        either = f"env.image_size={sizes.image_size}, or model.image_size={config.env.image_size}"
        raise UserError(f"{wanted}; set {either}")
    for key in ("collect", "explore", "eval", "record", "candidates"):
        execute = getattr(config, key).execute
        if execute > chunk:
            raise UserError(f"{key}.execute is {execute} but chunk_size is {chunk}; execute at most chunk_size steps")
    if config.collects_pairs and rollback[0] < chunk:
        short = f"collect.rollback_steps starts at {rollback[0]} but chunk_size is {chunk}"
        raise UserError(f"{short}: such losers have no state with a whole chunk after it; start at {chunk} or more")


def _check_exploring(config: RunConfig) -> None:
    """Episodes from one start run side by side."""
    if config.explores and config.env.backend == "robotwin":
        names = ", ".join(name for name in config.methods if config.row(name).sampler is not None)
        raise UserError(f"method: {names} run groups of episodes side by side, but RoboTwin has one scene at a time")


def _check_objectives(config: RunConfig) -> None:
    """Classes of the user's own can be imported and take their settings; made for a policy of a few lines."""
    for name in config.methods:
        row, settings = config.row(name), config.objective(name)
        if row.code is None:
            continue
        try:
            with blamed():
                method_objective(row, config.optimise, settings, SamplePolicy() if row.needs_reference else None)
        except OwnCodeError as error:
            raise UserError(f"objectives.{name}: {error}") from error


def _check_compiling(config: RunConfig) -> None:
    """Where layers are to be compiled, they can be."""
    for name in ("sft", "optimise"):
        if not getattr(config, name).compile:
            continue
        where = f"{name}.compile is true, but"
        if config.placement.ranks > 1:
            raise UserError(
                f"{where} placement.learner.ranks is {config.placement.ranks}, and layers that are sharded are not "
                "compiled; set one of them back"
            )
        if both := sorted(kind.name for kind in config.kinds if kind.makes_joint):
            raise UserError(f"{where} {both[0]} trains language as well, which is not compiled; leave compile out")
        try:
            check_compiler()
        except UserError as error:
            raise UserError(f"{name}.compile is true: {error}; or set {name}.compile=false") from error


def has_vllm() -> bool:
    """Whether vLLM is installed; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def _check_vllm(config: RunConfig) -> None:
    needed_by = sorted(config.engine_stages) or (["judge"] if config.judge is not None else [])
    if needed_by and not has_vllm():
        raise UserError(
            f"{' and '.join(needed_by)} need{'s' * (len(needed_by) == 1)} vLLM; install it with ./setup.sh cpu, or "
            "./setup.sh gpu for CUDA"
        )


def _check_language(config: RunConfig) -> None:
    """Engines, the files of the user, and the model that reinforcement learning starts from."""
    for name, path in config.questions.files().items():
        if not path.exists():
            raise UserError(f"{file_key(name)}: there is no {path}; give a JSONL or Parquet file")
        if not is_imitated(name) and config.rewards.judge is None and has_open_questions(path):
            raise UserError(f"{file_key(name)}: {path} has open questions; give rewards.judge, which scores them")
    _check_rewards("rewards", config.rewards)
    if config.truth is not None:
        _check_rewards("truth", config.truth)
    _check_judge(config)
    if config.model.path is not None and not config.learns_actions:  # else it has been read
        check_named("model.path", Path(config.model.path), check_language_model)
    longest = max(config.examine.max_tokens, *(kind.answer_length(config) for kind in config.kinds))
    if config.engine_stages and longest >= config.engine.max_model_len:
        raise UserError(
            f"engine.max_model_len is {config.engine.max_model_len}, but answers may be {longest} tokens long and come "
            "behind a prompt; raise it, or lower max_completion_length of grpo or distill, or examine.max_tokens"
        )
    for kind in config.kinds:
        kind.check(config)


def _check_rewards(where: str, rewards: RewardConfig) -> None:
    """Every weight has its reward, and every function that is named can be imported, where it will be called."""
    try:
        with contextlib.closing(make_rewards(rewards)) as made:
            made.start()
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error


def _check_judge(config: RunConfig) -> None:
    """The judge that the run serves is there, and asked."""
    if config.judge is None:
        return
    if not (Path(config.judge.path) / "config.json").is_file():
        raise UserError(f"judge.path: {config.judge.path} is no model's folder: config.json is missing")
    if config.rewards.judge is None:
        asks = f"{{base_url: ${JUDGE_URL}, model: {JUDGE_MODEL}}}"
        raise UserError(f"judge: nobody asks it; give rewards.judge: {asks}, or leave judge out")
    _check_judge_model(Path(config.judge.path))


def _check_judge_model(folder: Path) -> None:
    """The judge's folder holds a model of the lab, or JSON and headers that can be read: the rest only vLLM knows."""
    try:
        if read_config_file(folder).get("model_type") in KINDS:
            check_language_model(folder)
            return
        for path in sorted(folder.glob("*.json")):
            parse_json(read_text(path), str(path))
        check_headers(folder)
    except ValueError as error:
        raise UserError(f"judge.path: {error}") from error


def _check_gl() -> None:
    try:
        from envs.tabletop import gl  # reads MUJOCO_GL

        gl.create_context(16, 16).free()
    except (RuntimeError, ValueError) as error:
        raise UserError(str(error)) from error


def _check_ranks(config: RunConfig) -> None:
    for name, section in config:
        if config.placement.ranks > 1 and getattr(section, "backend", "lab") == "trl":
            raise UserError(
                f"placement.learner.ranks is {config.placement.ranks} but {name}.backend is trl, which trains in one "
                "process; set one of them back"
            )
        if config.placement.ranks > 1 and getattr(section, "optimiser", "adamw") != "adamw":
            raise UserError(
                f"placement.learner.ranks is {config.placement.ranks} but {name}.optimiser is {section.optimiser}, "
                "whose state is not shared over ranks; set one of them back"
            )


def _check_placement(config: RunConfig, declared: Sequence[Node]) -> None:
    cluster = declared or (cluster_nodes() if joins_cluster() else ())
    nodes = cluster or [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    if config.placement.device == "gpu" and not any(node.get("GPU") for node in nodes):
        raise UserError(
            f"placement is gpu but {'the cluster has' if cluster else 'torch sees'} none; use placement=auto or "
            + ("give it machines with GPUs" if cluster else "install torch's CUDA build and a driver")
        )
    check_resources(config, nodes, shared=bool(cluster))


def check_resources(config: RunConfig, nodes: Sequence[Node], *, shared: bool = False) -> None:
    """UserError if the machines do not have what the placement reserves. With `shared`, as on a cluster, also for what
    is not reserved; on one machine that takes turns on its cores."""
    asked = bundles(config.placement, config.workers_needed, shared=shared)
    shortage = lacking(asked, nodes, config.placement.strategy)
    if shortage is not None:
        raise UserError(shortage)


def warnings(config: RunConfig) -> list[str]:
    """What is allowed but probably not meant, one line each: idle clips, and see `algos.alarms.cap_warning`."""
    lines, name = [], config.grpo.idle_clip
    if name is not None and config.reads("rl"):
        lines.append(
            f"grpo.{name} is {getattr(config.grpo, name)} but cannot act: with grpo.num_iterations = 1 every ratio is "
            "1; raise num_iterations, or leave it out"
        )
    for method in config.methods:
        row, settings = config.row(method), config.objective(method)
        if row.needs_reference and row.code is None and row.proximal and row.sft_term:
            text = cap_warning(settings.beta, settings.lambda_pro, settings.lambda_sft)
            lines += [f"objectives.{method}: {text}"] if text else []
    return lines
