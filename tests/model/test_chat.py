"""Chats become the prompts of the released model, and prompts with pictures become its inputs."""

import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rl_lab.benchmarks.golden import golden_path
from rl_lab.model.chat import HunYuanVLMoTProcessor, ImageProcessor, answer_labels
from rl_lab.model.tokenizer import ROLES, load_tokenizer
from tests.support.models import picture

BOS, USER, ASSISTANT, EOS = ROLES["bos"], ROLES["user"], "<｜hy_Assistant｜>", ROLES["eos"]
S, E, N, L = (ROLES[role] for role in ("vision_start", "vision_end", "row_end", "latent"))
IMG, VID, PAD = ROLES["image"], ROLES["video"], ROLES["pad"]
SYSTEM_END = "<｜hy_place▁holder▁no▁3｜>"
EMPTY_THOUGHT = "<think>\n\n</think>\n"


@pytest.fixture(scope="module")
def processor() -> HunYuanVLMoTProcessor:
    return HunYuanVLMoTProcessor(ImageProcessor(min_pixels=32 * 32, max_pixels=128 * 128), load_tokenizer())


def render(processor: HunYuanVLMoTProcessor, chat: Any, **options: Any) -> Any:
    """The chat as a prompt or a batch."""
    return processor.apply_chat_template(chat, **options)


def user(*parts: Any) -> dict[str, Any]:
    """A user's message of texts and pictures."""
    kinds = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "image": x} for x in parts]
    return {"role": "user", "content": kinds}


def test_a_question_ends_in_the_prefix_of_the_answer_with_and_without_thinking(
    processor: HunYuanVLMoTProcessor,
) -> None:
    chat = [{"role": "user", "content": "Where?"}]
    asked = f"{BOS}{USER}Where?"
    assert render(processor, chat) == asked
    assert render(processor, chat, add_generation_prompt=True) == f"{asked}{ASSISTANT}{EMPTY_THOUGHT}"
    thinking = render(processor, chat, add_generation_prompt=True, enable_thinking=True)
    assert thinking == f"{asked}{ASSISTANT}<think>"


def test_system_turns_and_pictures_stand_where_the_released_template_has_them(processor: HunYuanVLMoTProcessor) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        user(picture(32, 32), "What?"),
        {"role": "assistant", "content": "<think>x</think><answer>cup</answer>"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And now?"}]},
    ]
    assert render(processor, chat) == (
        f"{BOS}Be brief.{SYSTEM_END}{USER}{S}{IMG}{L}{E}What?{ASSISTANT}<think>x</think><answer>cup</answer>{EOS}"
        f"{USER}{S}{VID}{L}{E}And now?"
    )


def test_an_unknown_role_or_part_is_refused(processor: HunYuanVLMoTProcessor) -> None:
    with pytest.raises(jinja2.TemplateError, match="of role tool"):
        render(processor, [{"role": "tool", "content": "3"}])
    with pytest.raises(jinja2.TemplateError, match="is audio; use text, image or video"):
        render(processor, [{"role": "user", "content": [{"type": "audio"}]}])


def test_an_image_becomes_rows_with_separators(processor: HunYuanVLMoTProcessor) -> None:
    batch = processor(text=f"{S}{IMG}{L}{E}a", images=picture(64, 96))
    assert processor.tokenizer.decode(batch["input_ids"][0]) == f"{S}{(IMG * 3 + N) * 2}{L}{E}a"
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6]] and batch["pixel_values"].shape == (24, 768)
    assert batch["pixel_values"].dtype == torch.float32


def test_a_video_becomes_one_image_after_the_other(processor: HunYuanVLMoTProcessor) -> None:
    frames = [picture(32, 64, seed) for seed in range(2)]
    expanded = (S + VID * 2 + N + E) * 2
    templated = processor(text=f"{S}{VID}{L}{E}a", videos=[frames])
    assert processor.tokenizer.decode(templated["input_ids"][0]) == f"{S}{expanded}{L}{E}a"
    bare = processor(text=f"{S}{VID}{E}a", videos=np.stack(frames))
    assert processor.tokenizer.decode(bare["input_ids"][0]) == f"{expanded}a"
    assert bare["video_grid_thw"].tolist() == [[2, 2, 4]]
    assert torch.equal(bare["pixel_values_videos"], templated["pixel_values_videos"])


def test_a_batch_is_padded_on_the_left_and_takes_pictures_flat_or_by_prompt(processor: HunYuanVLMoTProcessor) -> None:
    prompts = [f"{S}{IMG}{L}{E}a", f"{S}{IMG}{L}{E}{S}{IMG}{L}{E}bc", "d"]
    images = [picture(32, 32, 0), picture(64, 32, 1), picture(32, 64, 2)]
    flat = processor(text=prompts, images=images)
    nested = processor(text=prompts, images=[[images[0]], images[1:], []])
    assert all(torch.equal(flat[name], nested[name]) for name in flat)
    assert flat["image_grid_thw"].tolist() == [[1, 2, 2], [1, 4, 2], [1, 2, 4]]
    lengths = flat["attention_mask"].sum(1)
    for row, (ids, length) in enumerate(zip(flat["input_ids"], lengths, strict=True)):
        assert processor.tokenizer.decode(ids[: len(ids) - length]) == PAD * int(len(ids) - length), row


def test_placeholders_and_pictures_must_be_equally_many(processor: HunYuanVLMoTProcessor) -> None:
    with pytest.raises(ValueError, match="2 image placeholders but 1 images are given"):
        processor(text=f"{IMG}{IMG}", images=picture(32, 32))
    with pytest.raises(ValueError, match="0 video placeholders but 1 videos"):
        processor(text="a", videos=[[picture(32, 32)]])
    with pytest.raises(ValueError, match="of type str; give its frames"):
        processor(text=VID, videos="film.mp4")


def test_a_chat_with_pictures_is_tokenised_in_one_call(processor: HunYuanVLMoTProcessor, tmp_path: Path) -> None:
    Image.fromarray(picture(32, 64)).save(tmp_path / "one.png")
    chats = [[user(picture(32, 64), "a")], [user(str(tmp_path / "one.png"), "a")]]
    chats[1][0]["content"][0] = {"type": "image", "path": str(tmp_path / "one.png")}
    batch = render(processor, chats, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert torch.equal(*batch["pixel_values"].chunk(2))


def test_labels_are_the_answers_and_their_end_tokens(processor: HunYuanVLMoTProcessor) -> None:
    chat = [
        user(picture(64, 64), "a"),
        {"role": "assistant", "content": "red"},
        user("b"),
        {"role": "assistant", "content": "blue"},
    ]
    batch = render(processor, [chat, chat[:2]], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    labels = answer_labels(batch)
    assert labels.shape == batch["input_ids"].shape
    assert [processor.tokenizer.decode(row[row >= 0]) for row in labels] == [f"red{EOS}blue{EOS}", f"red{EOS}"]


def test_a_round_trip_is_byte_stable(processor: HunYuanVLMoTProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "first")
    HunYuanVLMoTProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    configs = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json"]
    assert names == ["chat_template.jinja", *configs]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_special_tokens_are_found_by_name_and_our_template_serves_where_there_is_none() -> None:
    tokenizer = load_tokenizer(golden_path("vlm"))
    assert tokenizer.chat_template is None
    processor = HunYuanVLMoTProcessor(ImageProcessor(min_pixels=32 * 32), tokenizer)
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids(IMG)
    asked = render(processor, [{"role": "user", "content": "a"}], tokenize=True, return_dict=True)
    assert processor.tokenizer.decode(asked["input_ids"][0]) == f"{BOS}{USER}a"


@pytest.mark.parametrize("name", ["vlm_image2", "vlm_image2_adjacent", "vlm_video"])
def test_expansion_restores_the_prompts_of_the_golden_set(name: str) -> None:
    case, tokenizer = load_file(golden_path(f"{name}.safetensors")), load_tokenizer(golden_path("vlm"))
    processor = HunYuanVLMoTProcessor(ImageProcessor(min_pixels=32 * 32), tokenizer)
    images, videos = (
        case.get(f"in.{kind}_grid_thw", torch.zeros(0, 3, dtype=torch.long)) for kind in ("image", "video")
    )
    text = str(tokenizer.decode(case["in.input_ids"][0]))
    rows = f"(({IMG})+{N})+"
    frames = f"({S}(({VID})+{N})+{E})+"
    collapsed = re.sub(frames, VID, re.sub(rows, IMG, text))
    assert (collapsed.count(IMG), collapsed.count(VID)) == (len(images), len(videos))
    (expanded,), _ = processor._expanded([collapsed], images.tolist(), videos.tolist())
    assert expanded == text


def test_bounds_of_a_call_are_honoured_for_pictures_and_videos(processor: HunYuanVLMoTProcessor) -> None:
    text, frames = [f"{S}{IMG}{L}{E}a", f"{S}{VID}{E}b"], [picture(64, 96), picture(64, 96)]
    usual = processor(text=text, images=picture(64, 96), videos=[frames])
    small = processor(text=text, images=picture(64, 96), videos=[frames], max_pixels=32 * 32)
    assert usual["image_grid_thw"].tolist() == [[1, 4, 6]] and small["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert usual["video_grid_thw"].tolist() == [[2, 4, 6]] and small["video_grid_thw"].tolist() == [[2, 2, 2]]
    again = processor(text=text, images=picture(64, 96), videos=[frames])
    assert torch.equal(again["pixel_values"], usual["pixel_values"])


@pytest.mark.parametrize("name", ["size", "do_resize", "fps", "images_kwargs", "a_misspelt_option"])
def test_an_option_that_would_change_nothing_is_refused_by_name(processor: HunYuanVLMoTProcessor, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not an option here"):
        processor(text="a", **{name: {"longest_edge": 64}})
    with pytest.raises(ValueError, match=f"{name} is not an option here"):
        HunYuanVLMoTProcessor.from_pretrained(golden_path("vlm"), **{name: 3})
