"""Runs whose pools are those of nodes: which pool is meant, what is written where, and what is over."""

import shutil

import pytest

from rl_lab.common.errors import UserError
from rl_lab.curriculum.store import PoolStore
from rl_lab.curriculum.view import PoolPlace, PoolView, locate
from rl_lab.pool import main
from tests.support.pools import create, output, train, write_nodes, write_run
from tests.support.refusals import refusal


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return write_nodes(tmp_path_factory.mktemp("one") / "run", ["frontier.1.grpo"])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return write_nodes(tmp_path_factory.mktemp("several") / "run", ["frontier.1.grpo", "uniform.1.grpo"])


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_with_one_pool_needs_no_name_of_it(one, capsys):
    node = one / "grpo" / "frontier.1.grpo"
    assert output(capsys, "ls", one) == output(capsys, "ls", node)
    assert locate(str(one)) == locate(str(node)) and locate(f"{one}@4") == locate(f"{node}@4")
    assert (locate(str(one)).run, locate(f"{one}@4").path) == (one, node / "checkpoints" / "step-4" / "pool.sqlite")


def test_of_several_pools_one_must_be_named(several, capsys):
    first, second = (several / "grpo" / f"{name}.1.grpo" for name in ("frontier", "uniform"))
    assert refusal(main, ["ls", str(several)]) == f"{several} holds 2 pools; give one of {first}, {second}"
    with pytest.raises(UserError, match=f"give one of {first}@4, {second}@4"):
        main(["ls", f"{several}@4"])
    assert "40 in all" in output(capsys, "ls", second)
    assert "40 shared items" in output(capsys, "diff", f"{first}@4", second)


def test_a_relative_node_is_found_from_anywhere(one, monkeypatch):
    for here, name in ((one, "grpo/frontier.1.grpo"), (one / "grpo", "frontier.1.grpo"), (one, ".")):
        monkeypatch.chdir(here)
        assert locate(name).run.resolve() == one


def test_every_reading_command_leaves_a_sealed_node_as_it_was(one, capsys, tmp_path):
    node = one / "grpo" / "frontier.1.grpo"
    before, item = files(node), PoolView(str(one)).item(0)["id"]
    for arguments in (
        ["ls"],
        ["hist"],
        ["show", item],
        ["why", f"{item}@3"],
        ["export", tmp_path / "a.jsonl"],
        ["html"],
    ):
        assert output(capsys, arguments[0], one, *arguments[1:])
    assert files(node) == before
    assert (one / "pool.html").is_file() and (one / "pool_images" / f"{item}-0.png").is_file()


def test_pages_of_several_pools_do_not_replace_each_other(several, capsys):
    for node in ("frontier.1.grpo", "uniform.1.grpo"):
        assert output(capsys, "html", several / "grpo" / node).splitlines()[-1] == str(several / f"pool-{node}.html")


@pytest.mark.parametrize("command", ["pin", "retire"])
def test_a_finished_run_takes_no_edits(one, command):
    with pytest.raises(UserError, match="is over, nothing would take effect") as caught:
        main([command, str(one), "pointing-000"])
    assert "\n" not in str(caught.value)


def test_a_node_that_is_done_takes_no_edits_even_if_its_file_is_writable(one, tmp_path):
    run = shutil.copytree(one, tmp_path / "run")
    (run / "grpo" / "frontier.1.grpo" / "pool.sqlite").chmod(0o644)
    with pytest.raises(UserError, match="is over"):
        main(["pin", str(run), "pointing-000"])
    (run / "stages.json").write_text((run / "stages.json").read_text().replace("done", "running"))
    assert main(["pin", str(run), "pointing-000"]) == 0


def test_a_live_node_is_a_link_to_the_folder_that_it_works_in(tmp_path, capsys):
    work = write_run(tmp_path / "work" / "abc", steps=4)
    node = tmp_path / "run" / "grpo" / "frontier.1.grpo"
    node.parent.mkdir(parents=True)
    node.symlink_to(work)
    store = PoolStore(work / "pool.sqlite")
    assert "takes effect at the run's next selection" in output(capsys, "pin", tmp_path / "run", "counting-037")
    assert "counting-037" in store.select(4, 4).ids
    assert output(capsys, "html", node).splitlines()[-1] == str(tmp_path / "run" / "pool.html")


def test_a_file_sealed_with_its_log_shows_what_the_log_holds(tmp_path):
    store = create(tmp_path)
    train(store, 3)
    (tmp_path / "pool.sqlite").chmod(0o444)
    assert PoolView(str(tmp_path)).now == (2, 2)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"nodes": 3}', '{"nodes": [3]}', "\\udcff"])
def test_a_damaged_list_of_stages_is_named(tmp_path, text):
    folder = tmp_path / "grpo" / "frontier"
    folder.mkdir(parents=True)
    pool = folder / "pool.sqlite"
    pool.touch(0o644)
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(UserError, match="stages.json"):
        _ = PoolPlace(tmp_path, folder, pool).over
