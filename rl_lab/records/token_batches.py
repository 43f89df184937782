"""Completions and chats to token batches: the only translator between what rollout workers record, or a data set
holds, and what objectives on text read.

Letters: P prompts, G completions of each, B rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from algos.batch import RolloutBatch, TokenBatch
from envs.spatial_qa.items import Item
from rl_lab.model.backbone import Pictures
from rl_lab.model.chat import IGNORED, HunYuanVLMoTProcessor, ImageProcessor, answer_labels, image_tokens
from rl_lab.model.tokenizer import ROLES
from rl_lab.records.types import Prompt, RolloutGroup, all_completions, filled

NO_THINKING = "/no_think"
"""End of a prompt that asks for the answer alone."""


def item_prompt(item: Item, processor: HunYuanVLMoTProcessor, seed: int | None = None) -> Prompt:
    """An item as an engine reads it: the chat template's tokens up to where the answer begins, and the pictures."""
    return question_prompt(item.prompt, item.images, processor, seed)


def question_prompt(
    text: str, images: tuple[np.ndarray, ...], processor: HunYuanVLMoTProcessor, seed: int | None = None
) -> Prompt:
    """The same of a question's text and pictures, uint8 [H, W, 3] each."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    tokens: Any = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        enable_thinking=not text.endswith(NO_THINKING),
        return_dict=False,
    )
    return Prompt(tokens, images, seed)


def with_token_texts(groups: Sequence[RolloutGroup], processor: HunYuanVLMoTProcessor) -> list[RolloutGroup]:
    """The groups with the text of each token of their completions."""
    decode = processor.tokenizer.decode
    return filled(
        groups, token_texts=[tuple(decode([token]) for token in one.tokens) for one in all_completions(groups)]
    )


Message = Mapping[str, Any]
"""A turn of a chat: `role` and `content`, a text or a list of typed parts, as in the public `messages` layout."""


def rollout_batch(
    groups: Sequence[RolloutGroup], processor: ImageProcessor, *, rewarded_only: bool = True
) -> RolloutBatch:
    """Completions to P prompts with their advantages; the images of a prompt are encoded once for all of them.

    With `rewarded_only` one without a reward, whose call failed, gets no row, and so counts nowhere. ValueError if none
    is left.
    """
    kept = [
        (number, completion)
        for number, group in enumerate(groups)
        for completion in group.completions
        if not rewarded_only or completion.reward is not None
    ]
    if not kept:
        raise ValueError("no answer of the batch has a reward, so nothing can be learned from it; see the failed calls")
    rows = [(group, one.prompt_tokens, one.tokens) for group, one in kept]
    columns = _token_rows([group.prompt for group in groups], rows, processor)
    completions = [completion for _, completion in kept]
    logprobs = torch.zeros(columns["input_ids"].shape)
    logprobs[columns["completion_mask"]] = torch.tensor([value for one in completions for value in one.logprobs])
    return RolloutBatch(
        **columns,
        rollout_logprobs=logprobs,
        advantages=torch.tensor([one.advantage for one in completions]),
        group=torch.tensor([group for group, _ in kept]),
        weight_version=torch.tensor([one.weight_version for one in completions]),
        finished=torch.tensor([one.finished for one in completions]),
    )


def imitation_batch(
    prompts: Sequence[Prompt], rows: Sequence[tuple[int, Sequence[int]]], processor: HunYuanVLMoTProcessor
) -> TokenBatch:
    """Completions to imitate token by token, as they were sampled: decoding and encoding again may give other tokens.

    A row is the place of its prompt and the tokens of its completion, end token included. Prompts hold one token for an
    image; their images are encoded once for all of their rows.
    """
    read = [expanded_tokens(prompt, processor) for prompt in prompts]
    whole = [(place, read[place], tokens) for place, tokens in rows]
    return TokenBatch(**_token_rows(prompts, whole, processor.image_processor))


def _token_rows(
    prompts: Sequence[Prompt], rows: Sequence[tuple[int, Sequence[int], Sequence[int]]], processor: ImageProcessor
) -> dict[str, Any]:
    """Fields of a `TokenBatch`: a row is the place of its prompt, the prompt as the model reads it, what follows."""
    ids, valid = pad_rows([[*read, *written] for _, read, written in rows])
    starts = torch.tensor([len(read) for _, read, _ in rows])
    shown = list(accumulate((len(prompt.images) for prompt in prompts), initial=0))
    images = [image for prompt in prompts for image in prompt.images]
    pictures = [range(shown[place], shown[place + 1]) for place, _, _ in rows]
    return {
        "input_ids": ids,
        "attention_mask": valid,
        "completion_mask": valid & (torch.arange(ids.shape[1]) >= starts[:, None]),
        "visual": Pictures.of_images(images, pictures, processor) if images else None,
    }


def expanded_tokens(prompt: Prompt, processor: HunYuanVLMoTProcessor) -> list[int]:
    """A prompt's tokens as the model reads them: each image token replaced by the rows of its image."""
    grids = (processor.image_processor.grid(*image.shape[:2]) for image in prompt.images)
    row_end: Any = processor.tokenizer.convert_tokens_to_ids(ROLES["row_end"])
    found: list[int] = []
    for token in prompt.tokens:
        is_image = token == processor.image_token_id
        found += image_tokens(next(grids)[1:], token, row_end) if is_image else [token]
    return found


def chat_length(messages: Sequence[Message], images: tuple[np.ndarray, ...], processor: HunYuanVLMoTProcessor) -> int:
    """Tokens of a chat in `chat_batch`, its pictures included; only their sizes are looked at."""
    turns: Any = list(messages)
    template = processor.chat_template
    tokens: Any = processor.tokenizer.apply_chat_template(turns, chat_template=template, return_dict=False)
    return len(expanded_tokens(Prompt(tokens, images), processor))


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [B, S] padded on the right with 0, and which of them are valid, bool [B, S]."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def chat_batch(chats: Sequence[Sequence[Message]], processor: HunYuanVLMoTProcessor) -> TokenBatch:
    """Chats with answers to imitate: every assistant turn and its end token is learned, in all turns of a chat.

    ValueError for a chat without an assistant turn.
    """
    for index, chat in enumerate(chats):
        if not any(message["role"] == "assistant" for message in chat):
            raise ValueError(f"chat {index} has no assistant turn, so nothing is to be learned from it; leave it out")
    made: Any = processor.apply_chat_template(
        [list(map(dict, chat)) for chat in chats],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return TokenBatch(
        input_ids=made["input_ids"],
        attention_mask=made["attention_mask"].bool(),
        completion_mask=answer_labels(made) != IGNORED,
        visual=_chat_pictures(chats, made),
    )


def _chat_pictures(chats: Sequence[Sequence[Message]], made: Any) -> Pictures | None:
    """Pictures of the processor's output, images before videos, each in the order of the chats."""
    pixels, grids, videos = [], [], []
    shown: list[list[int]] = [[] for _ in chats]
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if f"{kind}_grid_thw" not in made:
            continue
        for row, chat in enumerate(chats):
            count = sum(_count_parts(message["content"], kind) for message in chat)
            start = sum(map(len, shown))
            shown[row] += range(start, start + count)
        stated = [tuple(grid) for grid in made[f"{kind}_grid_thw"].tolist()]
        pixels.append(made[f"pixel_values{suffix}"])
        grids += stated
        videos += [kind == "video"] * len(stated)
    if not grids:
        return None
    return Pictures(torch.cat(pixels), tuple(grids), tuple(videos), tuple(map(tuple, shown)))


def _count_parts(content: Any, kind: str) -> int:
    """Parts of a kind in a message's content."""
    return 0 if isinstance(content, str) else sum(part["type"] == kind for part in content)
