"""The table of the papers: tasks by task configs, every task counting the same."""

from rl_lab.reports.benchmark import benchmark_lines, episodes_text, has_several_cells, success_table, table_text

CLEAN = [("click_bell", "demo_clean", hit) for hit in (True, True, True, False)]
RANDOM = [("click_bell", "demo_randomized", hit) for hit in (True, False)]
OTHER = [("turn_switch", "demo_clean", False)]


def test_rates_and_means_over_tasks():
    table = success_table(CLEAN + RANDOM + OTHER)
    assert table["rates"] == {
        "click_bell": {"demo_clean": 0.75, "demo_randomized": 0.5},
        "turn_switch": {"demo_clean": 0},
    }
    assert table["mean"] == {"demo_clean": 0.375, "demo_randomized": 0.5}, "not 3 of 5"
    assert has_several_cells(table) and episodes_text(table) == "1 to 4 episodes a cell"


def test_policies_stand_side_by_side():
    head, rows = table_text([("base", success_table(OTHER)), ("RPRO", success_table(CLEAN + RANDOM + OTHER))])
    assert head == ["task", "base demo_clean", "RPRO demo_clean", "RPRO demo_randomized"]
    assert rows == [
        ["turn_switch", "0.0", "0.0", ""],
        ["click_bell", "", "75.0", "50.0"],
        ["mean", "0.0", "37.5", "50.0"],
    ]


def test_a_single_cell_is_no_table():
    assert benchmark_lines([{"method": None, "round": 0} | success_table(OTHER)]) == []
    (text,) = benchmark_lines([{"method": None, "round": 0} | success_table(CLEAN + RANDOM)])
    assert text.splitlines()[-1].split() == ["mean", "75.0", "50.0"]
