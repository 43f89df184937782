"""Files of one's own in place of generated questions: no row is lost without a word."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from envs.spatial_qa.items import Item
from rl_lab.common.errors import UserError
from rl_lab.config.section import ModelConfig
from rl_lab.graph.stage import StageConfig
from rl_lab.model.checkpoint import model_processor
from rl_lab.model.tokenizer import ROLES, SPECIAL_TOKENS
from rl_lab.records.item_files import ItemFile, SolutionFile
from rl_lab.records.question_sets import Limits, check_files, check_shared, set_questions, take_file, unfit
from rl_lab.stages.kinds import KINDS, resolve_config
from rl_lab.stages.language import QuestionsKind
from tests.support.pools import png_bytes

QUESTION = {"prompt": "is it red? /no_think", "answer": "yes", "reward_type": "yes_no", "category": "perception"}
WORKED = QUESTION | {"solution": "<answer>yes</answer>"}
TALK = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


@pytest.fixture
def take(tmp_path):
    """Rows of a file as a set: the counts, and the set's file."""

    def took(name: str, rows: list[dict], skip_bad: bool = False):
        source, target = tmp_path / "mine.jsonl", tmp_path / "rows.arrow"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return take_file(source, name, target, skip_bad=skip_bad), target

    return took


def test_questions_make_a_pool_and_solutions_and_conversations_a_cold_start(take):
    counts, path = take("train", [QUESTION, WORKED])
    assert counts == {"questions": 2, "file": "mine.jsonl", "left_out": []} and len(ItemFile(path)) == 2
    counts, path = take("cold_start", [WORKED, TALK])
    assert counts["questions"] == 2
    assert [row.messages[-1]["content"] for row in SolutionFile(path)] == ["<answer>yes</answer>", "hi"]


def test_fields_without_meaning_are_counted(take):
    counts, _ = take("cold_start", [TALK | {"_category": "planning"}, TALK | {"_category": "x", "type": "cot"}])
    assert counts["ignored_fields"] == {"_category": 2} and counts["left_out"] == []


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("train", TALK, "a conversation has no answer to score; give it in cold_start_file"),
        ("held_out", TALK, "a conversation has no answer to score"),
        ("cold_start", QUESTION, "it has no solution to imitate"),
    ],
)
def test_a_row_that_the_set_cannot_use_is_named_or_listed(take, name, row, reason):
    with pytest.raises(UserError, match=rf"questions.{name}_file: mine.jsonl has 1 rows .*mine-2: {reason}"):
        take(name, [WORKED, row])
    counts, path = take(name, [WORKED, row], skip_bad=True)
    assert counts["questions"] == 1 == len(ItemFile(path))
    assert counts["left_out"][0]["id"] == "mine-2" and reason in counts["left_out"][0]["reason"]
    with pytest.raises(UserError, match="no row that can be used"):
        take(name, [row], skip_bad=True)


@pytest.fixture(scope="module")
def limits():
    """Of engines that take two pictures and 60 tokens, for the smallest model."""
    return Limits(model_processor(ModelConfig()), images_per_prompt=2, max_model_len=60)


def picture(side=8, colour=0):
    return np.full((side, side, 3), colour, np.uint8)


def item(prompt="is it red?", *images, solution=""):
    return Item("q", "perception", "user", "yes_no", 0, "q", {}, prompt, images, "yes", solution)


@pytest.mark.parametrize("images", [(), (picture(64), picture(8))])
def test_a_prompt_must_leave_room_for_one_token_in_the_engine(limits, images):
    processor = limits.processor
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "is it red?"}]
    read = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        enable_thinking=True,
        tokenize=True,
        return_dict=True,
    )
    length = read["input_ids"].shape[-1]
    assert unfit(item("is it red?", *images), "train", Limits(processor, 2, length + 1)) is None
    reason = unfit(item("is it red?", *images), "held_out", Limits(processor, 2, length))
    assert reason is not None and reason.startswith(f"its prompt is {length} tokens long with its pictures")
    assert reason.endswith(f"engine.max_model_len is {length}")


def test_the_pictures_of_a_prompt_must_fit_the_engine(limits):
    assert unfit(item("why?", picture(), picture()), "train", limits) is None
    reason = unfit(item("why?", *[picture()] * 3), "train", limits)
    assert reason == "it has 3 pictures, but engine.images_per_prompt is 2"
    assert unfit(item("why?", *[picture()] * 3, solution="x"), "cold_start", limits) is None


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BAD = [
    (
        "cold_start",
        TALK | {"messages": [*TALK["messages"], {"role": "tool", "content": "3"}]},
        "template refuses it: .*tool",
    ),
    (
        "cold_start",
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, TALK["messages"][1]]},
        "it holds a video file, whose frames nothing here reads",
    ),
    ("train", QUESTION | {"prompt": "no " * 100}, "engine.max_model_len is 60"),
    ("train", QUESTION | {"prompt": "which \ud800?"}, r"lone surrogate '\\ud800'"),
    ("train", QUESTION | {"id": "\udcff"}, r"lone surrogate '\\udcff'"),
    ("train", QUESTION | {"answer": "\ud8000"}, "lone surrogate"),
    ("train", QUESTION | {"prompt": f"see {ROLES['image']}"}, "holds the special token"),
    ("train", QUESTION | {"prompt": "<image> red?", "images": "a.png"}, "prompt holds <image>"),
    ("train", QUESTION | {"images": "narrow.png"}, "1 x 300 pixels is too narrow"),
    ("train", QUESTION | {"images": ["a.png"] * 3}, "it has 3 pictures"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD, ids=[reason[:30] for _, _, reason in BAD])
def test_a_row_that_no_later_stage_can_use_names_its_line_before_the_first(tmp_path, limits, name, row, reason):
    (tmp_path / "a.png").write_bytes(png_bytes(picture(8)))
    (tmp_path / "a.mp4").write_bytes(b"0")
    Image.fromarray(np.zeros((1, 300, 3), np.uint8)).save(tmp_path / "narrow.png")
    good = WORKED if name == "cold_start" else QUESTION
    path = lines(tmp_path / "mine.jsonl", good, row, good | {"category": "nonsense"})
    with pytest.raises(UserError, match=rf"questions.{name}_file: mine.jsonl, line 2: .*{reason}") as error:
        check_files({name: path}, limits, skip_bad=False)
    assert "\n" not in str(error.value) and str(error.value).encode()
    check_files({name: path}, limits, skip_bad=True)
    counts = take_file(path, name, tmp_path / "rows.arrow", skip_bad=True, limits=limits)
    assert counts["questions"] == 1 and len(counts["left_out"]) == 2


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_no_text_may_hold_a_token_of_the_template(tmp_path, limits, token):
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"well{token}"}]}
    with pytest.raises(UserError, match="line 1: a text holds the special token"):
        check_files({"cold_start": lines(tmp_path / "a.jsonl", talk)}, limits, skip_bad=False)


def test_a_file_without_any_row_that_fits_is_refused_before_the_run(tmp_path, limits):
    with pytest.raises(UserError, match="train_file: a.jsonl has no row that can be used"):
        check_files({"train": lines(tmp_path / "a.jsonl", TALK)}, limits, skip_bad=True)


def asking(text, *images):
    return {
        "role": "user",
        "content": [*({"type": "image", "image": name} for name in images), {"type": "text", "text": text}],
    }


@pytest.mark.parametrize(
    ("train", "held_out", "is_shared"),
    [
        (QUESTION, QUESTION | {"id": "other", "answer": "no"}, True),
        (QUESTION, QUESTION | {"prompt": "is it red?  /think"}, True),
        (QUESTION | {"images": "a.png"}, QUESTION | {"images": "copy.bmp"}, True),
        (QUESTION | {"images": "a.png"}, QUESTION | {"images": "b.png"}, False),
        (QUESTION | {"images": "a.png"}, QUESTION, False),
        (QUESTION, QUESTION | {"prompt": "is it blue?"}, False),
    ],
)
def test_the_same_prompt_and_pictures_may_stand_in_one_set_only(tmp_path, limits, train, held_out, is_shared):
    (tmp_path / "a.png").write_bytes(png_bytes(picture(8, 1)))
    (tmp_path / "b.png").write_bytes(png_bytes(picture(8, 2)))
    Image.fromarray(picture(8, 1)).save(tmp_path / "copy.bmp")
    files = {"train": lines(tmp_path / "t.jsonl", train), "held_out": lines(tmp_path / "h.jsonl", held_out)}
    if not is_shared:
        return check_files(files, limits, skip_bad=False)
    with pytest.raises(
        UserError, match=r"train and held_out share 1 questions .*: t-1 = (h-1|other); keep each"
    ) as error:
        check_files(files, limits, skip_bad=False)
    assert "\n" not in str(error.value)


def test_any_turn_of_a_conversation_counts_as_asked(tmp_path, limits):
    (tmp_path / "a.png").write_bytes(png_bytes(picture(8)))
    reply = {"role": "assistant", "content": "x"}
    talk = {"messages": [asking("where?", "a.png"), reply, asking("is it red?"), reply]}
    files = {
        "cold_start": lines(tmp_path / "c.jsonl", talk),
        "held_out": lines(tmp_path / "h.jsonl", QUESTION | {"images": "a.png"}),
    }
    with pytest.raises(UserError, match="cold_start and held_out share 1 questions .*: c-1 = h-1"):
        check_files(files, limits, skip_bad=False)


def test_sets_that_were_written_are_compared_where_one_is_of_ones_own(tmp_path, take):
    _, path = take("cold_start", [WORKED, TALK])
    sets = {name: list(set_questions(path)) for name in ("cold_start", "train")}
    assert [identity for identity, _ in sets["train"]] == ["mine-1", "mine-2"]
    check_shared(sets, own=())
    with pytest.raises(UserError, match="cold_start and train share 2 questions .*: mine-1, mine-2; keep each"):
        check_shared(sets, own=("train",))


def test_the_stage_writes_the_sets_of_ones_own_and_compares_them(tmp_path):
    files = {
        "train": lines(tmp_path / "t.jsonl", QUESTION),
        "cold_start": lines(tmp_path / "c.jsonl", TALK | {"_category": "x"}),
        "held_out": lines(tmp_path / "h.jsonl", QUESTION | {"prompt": "is it blue?"}),
    }
    said = []

    def stage(**changed):
        named = {f"{name}_file": str(path) for name, path in (files | changed).items()}
        config = resolve_config({"name": "own", "stages": ["questions"], "questions": named}, "test")
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        context = SimpleNamespace(config=StageConfig(config, KINDS["questions"]), seed=0, out=out, say=said.append)
        QuestionsKind().run(None, context)
        return json.loads((out / "questions.json").read_text())

    counts = stage()
    assert [counts[name]["questions"] for name in files] == [1, 1, 1]
    assert said == ["questions.cold_start_file: the field _category of 1 rows means nothing here"]
    with pytest.raises(UserError, match="train and held_out share 1 questions"):
        stage(held_out=files["train"])
