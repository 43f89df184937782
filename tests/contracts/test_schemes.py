"""Curriculum schemes of one's own: their contract, their place in a configuration and in the pool."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from algos.curriculum.curriculum import Curriculum
from algos.curriculum.options import CurriculumOptions, OwnScheme
from envs.by_name import OwnCodeError
from rl_lab.check import main
from rl_lab.common.errors import RunError, UserError
from rl_lab.curriculum.store import PoolItem, PoolStore
from rl_lab.curriculum.view import PoolView
from rl_lab.curriculum.why import explain
from rl_lab.stages.kinds import load_config
from rl_lab.stages.own_code import check_schemes
from tests.support.experiments import differing, hashes

ROOT = Path(__file__).resolve().parents[2]
KNOWN = f"{ROOT / 'examples' / 'least_known.py'}:LeastKnown"
WRONG = """
import numpy as np

class Even:
    def weights(self, items, rows, step, version):
        return self.of(np.ones(len(rows)), items, rows)
    def of(self, ones, items, rows):
        return ones

class Short(Even):
    def of(self, ones, items, rows):
        return ones[1:]

class Negative(Even):
    def of(self, ones, items, rows):
        return -ones

class Nothing(Even):
    def of(self, ones, items, rows):
        return 0 * ones

class Few(Even):
    def of(self, ones, items, rows):
        return ones * (rows < 3)

class Changes(Even):
    def of(self, ones, items, rows):
        items.pinned[rows] = True
        return ones

class Remembers(Even):
    calls = 0
    def of(self, ones, items, rows):
        Remembers.calls += 1
        return ones * Remembers.calls

class Raises(Even):
    def of(self, ones, items, rows):
        return items.no_such_column

class Narrow(Even):
    def weights(self, items): ...

class Empty: ...
"""


def test_a_run_refuses_one_before_it_begins(wrong):
    config = load_config(Path("frontier_smoke"), [f"curriculum.own={{mine: {{code: '{wrong}:Narrow'}}}}"])
    with pytest.raises(UserError, match=r"curriculum.own.mine: .*Narrow: weights: too many positional arguments"):
        check_schemes(config)


def test_the_example_keeps_the_contract_and_finds_more_signal_than_uniform(capsys):
    assert main(["scheme", KNOWN, "power=2.0"]) == 0
    assert "groups have a signal; uniform asks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Short", "Short.weights gives [239] for 240 items; expected a number for each"),
        ("Negative", "Negative.weights gives -1.0 for item 0; expected finite numbers of at least 0"),
        ("Nothing", "all 240 items have the weight 0"),
        ("Few", "it filled 120 of 320 places"),
        ("Changes", "weights changed the items; read their columns only"),
        ("Remembers", "the same items get other weights again"),
        ("Raises", "wrong_schemes.py:39: AttributeError: no_such_column"),
        ("Narrow", "weights: too many positional arguments; it is called with items, rows, step, version"),
        ("Empty", "makes no scheme: it has no weights"),
    ],
)
def test_what_it_does_not_keep_is_one_line(wrong, name, said):
    with pytest.raises(RunError) as caught:
        main(["scheme", f"{wrong}:{name}"])
    assert said in str(caught.value)


def test_settings_that_it_does_not_take_are_told():
    with pytest.raises(RunError, match=r"argument 'pwoer'; it is called with pwoer=..."):
        main(["scheme", KNOWN, "pwoer=2.0"])


def options(**changes) -> CurriculumOptions:
    return CurriculumOptions(scheme="known", own={"known": OwnScheme(code=KNOWN)}, batch_size=4, **changes)


def test_items_that_are_known_are_asked_less_and_a_resumed_pool_selects_the_same(tmp_path):
    items = [PoolItem(f"item-{number}", "spatial") for number in range(12)]
    first = PoolStore.create(tmp_path / "pool.sqlite", options(), 0, ["spatial"], items)
    for step in range(6):
        numbers = first.select(step, step).numbers
        first.observe(step, numbers, np.ones((4, 8)), np.full(4, step))
    folder = first.checkpoint(tmp_path / "kept").parent
    chosen = first.select(6, 6).numbers
    first.close()
    resumed = PoolStore.restore(folder, tmp_path / "pool.sqlite", print)
    assert resumed.select(6, 6).numbers.tolist() == chosen.tolist()
    resumed.close()
    with closing(PoolView(str(tmp_path))) as view:
        said = "\n".join(explain(view, f"item-{chosen[0]}", 6))
        left = next(number for number in range(12) if number not in chosen)
        assert "drawn by the weights of a scheme of one's own" in said
        assert "12 candidates (own)" in "\n".join(explain(view, f"item-{left}", 6))


def test_it_may_replace_groups_without_signal():
    own = {"known": OwnScheme(code=KNOWN, refills=True)}
    assert options().refills is False and options().replace(own=own).refills is True


def test_what_it_raises_in_a_run_has_its_file_and_line(wrong):
    pool = Curriculum(options().replace(own={"known": OwnScheme(code=f"{wrong}:Raises")}), 0, 1)
    pool.add(np.zeros(9, np.uint8))
    with pytest.raises(OwnCodeError, match=r"wrong_schemes.py:39: AttributeError"):
        pool.select(0, 0)


def test_its_content_is_in_the_hash_of_its_own_stages_alone(example, tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text((ROOT / "examples" / "least_known.py").read_text())

    code = f"curriculum.own.least_known.code={copy}:LeastKnown"
    before = hashes(example("least_known", code))
    copy.write_text(copy.read_text() + "\n# other\n")
    after = hashes(example("least_known", code))
    assert differing(before, after) == {f"given.1.least_known.1.{kind}" for kind in ("grpo", "examine")}
    assert "given.1.uniform.1.grpo" in before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "curriculum.scheme=least_know",
            "scheme is 'least_know'; choose one of frontier, uniform.*did you mean least_known",
        ),
        ("study.methods=[uniform, unifrom]", "scheme is 'unifrom'; choose one of.*did you mean uniform"),
        (
            "curriculum.own={uniform: {code: examples/least_known.py:LeastKnown}}",
            "own.uniform: .* needs a name of its own",
        ),
        ("curriculum.mode=stage", "mode stage keeps partial success"),
    ],
)
def test_names_that_are_none_are_refused(example, override, said):
    with pytest.raises(UserError, match=said):
        example("least_known", override)
