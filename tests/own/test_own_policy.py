"""A policy of one's own through SFT, rounds of several objectives and evaluation, on an environment of one's own."""

from pathlib import Path

import pytest
import torch

from envs.by_name import OwnCodeError
from envs.execution import Execution
from envs.rollback import RollbackConfig
from envs.types import Episode
from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.eval import main as evaluate
from rl_lab.learner.actions import OptimisePlan, SFTPlan, starting_policy
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import check_language_model, check_policy, load_policy, published
from rl_lab.model.policies.own import own_spec
from rl_lab.records.episodes import write_episodes, write_pairs
from rl_lab.workers.policy import CorrectorPlan, Inference
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.own import reach

ROOT = Path(__file__).resolve().parents[2]
CODE = f"{ROOT / 'examples' / 'flow_mlp.py'}:FlowMLP"
MODEL = ModelConfig(code=CODE, chunk_size=8, settings={"width": 16})
UNIT = Unit(EnvSpec(f"{reach.__file__}:make", "default", "default", 64), seeds=(3, 4, 5), run_seed=0)
STEPS = {"steps": 4, "batch_size": 4, "warmup": 1, "draws_per_sample": 2}
ROLLBACK = RollbackConfig(execute=4, rollback_steps=(8, 8), kept_after_event=8)


def run(plan, folder: Path, stop: int | None = None) -> Training:
    training = Training(plan)
    while training.step < (stop or plan.settings.steps):
        training.run_step()
    if stop is None:
        training.finish(folder)
    return training


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder, CODE)[0].state_dict()


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Demonstrations, a policy after SFT, and the pairs of its failures."""
    folder = tmp_path_factory.mktemp("own_policy")
    write_episodes(folder / "demos", [one for one in Simulation().demonstrate(UNIT, 0.0) if isinstance(one, Episode)])
    plan = SFTPlan(MODEL, SFTConfig(**STEPS, probe_weight=0.0, ema_start=2), folder / "demos", stride=1, seed=0)
    run(plan, folder / "sft")
    found = Simulation().collect(UNIT, published(folder / "sft", CODE), ROLLBACK, CorrectorPlan())
    assert found.pairs
    write_pairs(folder / "pairs", found.pairs)
    return folder


def optimise(folder: Path, method: str, **settings) -> OptimisePlan:
    return OptimisePlan(
        method,
        1,
        OptimiseConfig(**STEPS, **settings),
        ObjectiveConfig(),
        (0.8, 0.2) if method != "continued_sft" else (1.0,),
        policy=folder / "sft",
        sft=folder / "sft",
        demos=folder / "demos",
        stride=1,
        pairs=(folder / "pairs",) if method != "continued_sft" else (),
        seed=0,
        code=CODE,
    )


@pytest.mark.parametrize(
    "method",
    ["continued_sft", "rpro", "flow_dpo", "rpro_trajectory", "dagger_buffered", "advantage_conditioned"],
)
def test_every_objective_moves_what_it_trains_and_nothing_else(given, tmp_path, method):
    run(optimise(given, method), tmp_path / "policy")
    before, after = weights(given / "sft"), weights(tmp_path / "policy")
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"flow"}
    rows = Simulation().evaluate(UNIT, published(tmp_path / "policy", CODE), Execution(execute=4))
    assert len(rows) == 3 and all(row["weight_version"] == 2 for row in rows)


def test_a_killed_training_goes_on_to_the_same_bits(given, tmp_path):
    plan = optimise(given, "rpro", train=("vision", "vlm", "expert"))
    run(plan, tmp_path / "whole")
    state = run(plan, tmp_path, stop=2).state_dict()
    training = Training(plan)
    training.load_state_dict(state)
    while training.step < 4:
        training.run_step()
    training.finish(tmp_path / "resumed")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_checkpoint_says_what_it_was_made_for_and_not_where_the_code_lies(given):
    text = (given / "sft" / "config.json").read_text()
    assert '"class_name": "FlowMLP"' in text and "flow_mlp.py" not in text
    spec, processor, info = check_policy(given / "sft", CODE)
    assert (spec.layout.action_dim, spec.chunk_size, spec.settings) == (2, 8, {"width": 16})
    assert processor.num_commands == 8 and info.weight_version == 1
    start = starting_policy(MODEL.replace(path=str(given / "sft")), seed=0, stride=1)
    assert start.processor is not None and start.policy.config == spec


def test_code_is_run_only_where_it_is_named(given):
    with pytest.raises(
        UserError, match=r"policy of one's own, FlowMLP; code is run only where you name it: model.code="
    ):
        check_policy(given / "sft")
    with pytest.raises(UserError, match=r"code is run only where you name it"):
        evaluate([str(given / "sft"), f"env.backend={UNIT.env.backend}"])
    with pytest.raises(ValueError, match=r"chunk_size is 4, but .*sft predicts 8 commands"):
        own_spec(MODEL.replace(path=str(given / "sft"), chunk_size=4))
    with pytest.raises(UserError, match="does not fit"):
        check_language_model(given / "sft")


def test_weights_of_another_class_are_told(given, tmp_path):
    other = tmp_path / "other_policy.py"
    other.write_text(Path(CODE.rpartition(":")[0]).read_text().replace("self.flow", "self.stream"))
    with pytest.raises(UserError, match=r"does not fit: weights are not those of FlowMLP: .*stream"):
        load_policy(given / "sft", f"{other}:FlowMLP")


def test_what_it_raises_in_the_process_that_all_share_is_told_in_the_same_way(given, tmp_path):
    broken = tmp_path / "shared_policy.py"
    broken.write_text(Path(CODE.rpartition(":")[0]).read_text().replace("super().__init__(spec)", "spec.nothing"))
    with pytest.raises(OwnCodeError, match=r"shared_policy.py:\d+: AttributeError"):
        Inference("cpu").load(published(given / "sft", f"{broken}:FlowMLP"), 0)


@pytest.mark.parametrize("where", ["evaluate", "record", "collect"])
def test_what_it_raises_while_it_acts_is_told_with_file_and_line(given, tmp_path, where):
    broken = tmp_path / "broken_policy.py"
    text = Path(CODE.rpartition(":")[0]).read_text()
    broken.write_text(text.replace("        pictures = observation.images ", "        self.nothing  # "))
    line = 1 + broken.read_text().splitlines().index(next(t for t in broken.read_text().splitlines() if "nothing" in t))
    snapshot = published(given / "sft", f"{broken}:FlowMLP")
    arguments = (ROLLBACK, CorrectorPlan()) if where == "collect" else (Execution(),)
    with pytest.raises(OwnCodeError, match=rf"broken_policy.py:{line}: AttributeError"):
        getattr(Simulation(), where)(UNIT, snapshot, *arguments)


def test_a_tokenizer_of_its_own_reads_the_instructions(tmp_path, given):
    copy = tmp_path / "reader.py"
    text = Path(CODE.rpartition(":")[0]).read_text()
    copy.write_text(
        text + "\n\nclass Reader(FlowMLP):\n    def token_ids(self, text):\n        return [len(text), 7]\n"
    )
    _, processor, _ = load_policy(given / "sft", f"{copy}:Reader")
    tokens, mask = processor.tokenize(["go", "go on"])
    assert tokens.tolist() == [[2, 7], [5, 7]] and bool(mask.all())
