"""From completions to answers: the rules, and hostile text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answers import (
    MAX_ANSWER_CHARS,
    MAX_OBJECTS,
    answer_text,
    completion_text,
    parse_choice,
    parse_count,
    parse_groups,
    parse_number,
    parse_ordering,
    parse_yes_no,
)
from rewards.verifiers import format_reward

PARSERS = (
    lambda answer: parse_groups(answer, 2),
    lambda answer: parse_groups(answer, 4),
    parse_number,
    parse_count,
    parse_choice,
    parse_yes_no,
    parse_ordering,
)
CPU_LIMIT_S = 20.0
"""Linear work on the texts below takes a fraction of a second; quadratic work takes hours."""


def test_text_comes_from_strings_and_from_the_last_assistant_message():
    assert completion_text("abc") == "abc"
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}]) == "a"
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert completion_text([{"role": "assistant", "content": parts}]) == "ab"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([]) == ""
    for wrong in (None, 3, [3], b"abc"):
        with pytest.raises(ValueError, match="text or a list of messages"):
            completion_text(wrong)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think>\n<answer> 5 </answer>", "5"),
        ("x</think><answer>5</answer>", "5"),
        ("<answer>5</answer>", "5"),
        ("<think>no, <answer>4</answer></think><answer>5</answer>", "5"),
        ("<answer>4</answer><answer>5</answer>", "5"),
        ("<answer>4<answer>5</answer></answer>", "5"),
        ("<answer><answer>5</answer>", "5"),
        ("<think>never closed <answer>5</answer>", None),
        ("<answer>5</answer><think>", "5"),
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        ("<answer>  </answer>", None),
        ("<ANSWER>5</ANSWER>", None),
        ("5", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_closed_block_behind_the_thinking(text, answer):
    assert answer_text(text) == answer


def test_an_answer_above_the_limit_is_malformed():
    assert answer_text(f"<answer>{'a' * (MAX_ANSWER_CHARS - 8)}</answer>") is not None
    assert answer_text(f"<answer>{'a' * (MAX_ANSWER_CHARS + 1)}</answer>") is None


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("<box>[1, 2, 3, 4]</box>", [[1, 2, 3, 4]]),
        ("It is at <box>[1, 2, 3, 4]</box> (on the left).", [[1, 2, 3, 4]]),
        ("[[1,2,3,4], [5,6,7,8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("1. <box>[1, 2, 3, 4]</box>\n2. <box>[5 6 7 8.5]</box>", [[1, 2, 3, 4], [5, 6, 7, 8.5]]),
        ("1, 2, 3, 4", [[1, 2, 3, 4]]),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("[1, 2, 3, 4] [5, 6]", None),
        ("[1, 2, 3, 1001]", None),
        ("[1, 2, 3, -1]", None),
        ("[1, 2, 3, nan]", None),
        ("[1, 2, 3, inf]", None),
        ("[1, 2, 3, 1e999]", None),
        ("[1, 2, 3, 0x10]", None),
        ("[1, 2, 3, \u0664]", None),
        ("[]", None),
        ("no box", None),
        ("<box></box>", None),
        ("<box>[1, 2, 3, 4", None),
    ],
)
def test_boxes_are_groups_of_four_coordinates_in_range(answer, boxes):
    assert parse_groups(answer, 4) == boxes


def test_points_may_be_written_with_tags_round_or_square_brackets():
    for text in ("<point>(1, 2)</point>", "<point>1, 2</point>", "(1, 2)", "[1, 2]", "[(1, 2)]", "(1,2) (here)"):
        assert parse_groups(text, 2) == [[1, 2]]
    assert parse_groups("<point>(0, 1000)</point>, (3, 4)", 2) == [[0, 1000], [3, 4]]


def test_more_objects_than_the_bound_are_malformed():
    assert len(parse_groups("(1,2)" * MAX_OBJECTS, 2)) == MAX_OBJECTS
    assert parse_groups("(1,2)" * (MAX_OBJECTS + 1), 2) is None
    assert parse_ordering("a," * MAX_OBJECTS) == ["a"] * MAX_OBJECTS
    assert parse_ordering("a," * (MAX_OBJECTS + 1)) is None


def test_a_number_is_the_only_one_in_the_answer():
    for text, value in (("0.35", 0.35), ("about 0.35m.", 0.35), ("-2e-1", -0.2), ("+.5 m", 0.5), ("\u22123", -3)):
        assert parse_number(text) == value
    for text in ("0.3 to 0.4", "3-5", "", "one", "nan", "inf", "1e999", "9" * 5000, "1,200", "0,35"):
        assert parse_number(text) is None
    for text, value in (("3.", 3), ("5 m2", 5), ("4 m\u00b2", 4), ("2x", 2), ("about (7)", 7)):
        assert parse_number(text) == value
    for text in (
        "3.7.1",
        "v3.7",
        "1_000",
        "0x10",
        "3x4",
        "5...7",
        "3\u00bd",
        "3\u00b2",
        "\u0663.5",
        "3\u0664",
        "9" * 400,
    ):
        assert parse_number(text) is None
    assert parse_count("3 cups") == 3
    assert parse_count("3.0") == 3
    assert parse_count("2.5") is parse_count("-1") is None


def test_a_choice_is_a_leading_letter_and_not_a_word():
    for text in ("B", "b", "(B)", "B.", "B) the cup", '"B"', "B: the cup"):
        assert parse_choice(text) == "B"
    for text in ("A red cup", "the cup", "", "1", "BC"):
        assert parse_choice(text) is None


def test_a_choice_with_another_option_behind_it_is_none():
    for text in ("(A) (B)", "A) B)", "A: no, it is B", "B: no, A is right", "a) or b)", "A.B", "B. A", "C: not (b)"):
        assert parse_choice(text) is None
    for text in ("B. A red cup", "B: 3 m", "B: 20 N", "B: the C-shaped hook's", "B) so B", "(b) it's a cup", "B: f(x)"):
        assert parse_choice(text) == "B"


def test_yes_or_no_needs_a_hit_and_no_contradiction():
    for text in (
        "not yes",
        "It isn't a yes",
        "I can\u2019t say yes",
        "neither yes",
        "NOT NO",
        "ayes",
        "yes-no",
        "\u00e9yes",
    ):
        assert parse_yes_no(text) is None
    assert parse_yes_no("Yes, it is not blocked") == parse_yes_no("The answer is yes") == "yes"
    assert parse_yes_no("No, it isn't.") == "no"
    assert parse_yes_no("Yes, it is.") == "yes"
    assert parse_yes_no("NO") == "no"
    assert parse_yes_no("yes and no") is parse_yes_no("nothing") is parse_yes_no("") is None


def test_orderings_lose_numbering_quotes_case_and_spacing():
    steps = ["grasp the cup", "lift it"]
    for text in (
        "grasp the cup, lift it",
        "1. Grasp  the cup\n2. Lift it.",
        '["grasp the cup", "lift it"]',
        "grasp the cup -> lift it",
        "grasp the cup > lift it",
        "Grasp the cup; lift it",
    ):
        assert parse_ordering(text) == steps
    assert parse_ordering(" ,,; ") is None


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("\n<think>\n</think>\n<answer>\nb\n</answer>\n", 1),
        ("a</think><answer>b</answer>", 1),
        ("<answer>b</answer>", 1),
        ("a <answer>b</answer>", 0),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> done", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<think>a<answer>b</answer>", 0),
        ("x <think>a</think><answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<answer><think>a</think>b</answer>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("", 0),
    ],
)
def test_the_format_reward_wants_one_thinking_block_and_one_answer(text, reward):
    assert format_reward(text) == reward


FILLING = (
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "<answer></answer>",
    "(",
    "[",
    "9",
    " ",
    "1.",
    "1e",
    "<",
    "é",
)


@pytest.mark.parametrize("filling", FILLING)
def test_megabytes_of_hostile_text_take_linear_time(filling):
    text = filling * (4_000_000 // len(filling))
    start = time.process_time()
    for whole in (text, f"<answer>{text}</answer>", f"<think>{text}</think><answer>5</answer>"):
        answer = answer_text(whole)
        format_reward(whole)
        for parse in PARSERS:
            parse(answer or "")
    assert time.process_time() - start < CPU_LIMIT_S


@pytest.mark.parametrize(
    "filling", ["(", "[", ")", "1", "1.", "1e", "1 ", " ", "\n", ",", "(1,", "<point>", "-", ".1", "yes "]
)
@pytest.mark.parametrize("end", ["", "x", ")", "(1, 2)"])
def test_no_answer_within_the_limit_makes_a_parser_backtrack(filling, end):
    answer = (filling * MAX_ANSWER_CHARS)[: MAX_ANSWER_CHARS - len(end)] + end
    start = time.process_time()
    for parse in PARSERS:
        for opening in ("", "(", "x"):
            parse(opening + answer)
    assert time.process_time() - start < CPU_LIMIT_S


@given(st.text() | st.lists(st.sampled_from((*FILLING, "</point>", "nan", "5", ",", "a")), max_size=30).map("".join))
def test_no_text_makes_a_parser_raise(text):
    for whole in (text, f"<answer>{text}</answer>"):
        answer = answer_text(whole) or whole
        format_reward(whole)
        for parse in PARSERS:
            parse(answer)
