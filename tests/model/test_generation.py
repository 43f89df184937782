"""What callers of transformers' `generate` expect of the language model: a call, and what it gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

from rl_lab.model.chat import HunYuanVLMoTProcessor
from tests.model.test_vlm import CLOSE, Batch, batch_of, chats
from tests.support.models import make_vlm

NEW = 4
FIXED: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def batch(processor: HunYuanVLMoTProcessor) -> Batch:
    """Rows of text, pictures and a video, padded on the left."""
    return batch_of(processor, chats())


@pytest.fixture(scope="module")
def row(processor: HunYuanVLMoTProcessor) -> Batch:
    """A picture and text, without padding: transformers assists one row at a time."""
    return batch_of(processor, chats()[1:2])


@pytest.fixture(scope="module")
def greedy(vlm: Any, batch: Batch, row: Batch) -> dict[str, Tensor]:
    return {"batch": vlm.generate(**batch, **FIXED), "row": vlm.generate(**row, **FIXED)}


ALIKE: dict[str, tuple[str, Any]] = {
    "no cache": ("batch", lambda vlm: {"use_cache": False}),
    "static cache": ("batch", lambda vlm: {"cache_implementation": "static"}),
    "a cache of one's own": ("batch", lambda vlm: {"past_key_values": DynamicCache()}),
    "a long static cache": ("batch", lambda vlm: {"past_key_values": StaticCache(vlm.config, max_cache_len=99)}),
    "one choice": ("batch", lambda vlm: {"do_sample": True, "top_k": 1}),
    "words of the prompt": ("row", lambda vlm: {"prompt_lookup_num_tokens": 2}),
    "an assistant like it": ("row", lambda vlm: {"assistant_model": vlm}),
    "an assistant unlike it": ("row", lambda vlm: {"assistant_model": make_vlm(seed=3)}),
}


@pytest.mark.parametrize("way", ALIKE)
def test_a_way_that_gives_what_greedy_search_gives(
    vlm: Any, batch: Batch, row: Batch, greedy: dict[str, Tensor], way: str
) -> None:
    rows, options = ALIKE[way]
    given = {"batch": batch, "row": row}[rows]
    assert torch.equal(vlm.generate(**given, **FIXED | options(vlm)), greedy[rows])


def test_a_static_cache_gives_what_a_pass_gives(vlm: Any) -> None:
    """Also token by token and without a mask, where most of the cache is not written yet."""
    ids = torch.arange(20, 30)[None]
    cache = StaticCache(vlm.config, max_cache_len=32)
    parts = [vlm(some, past_key_values=cache).logits for some in (ids[:, :5], ids[:, 5:8], ids[:, 8:9], ids[:, 9:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), vlm(ids).logits, **CLOSE)


def test_beams_have_the_score_of_their_tokens(vlm: Any, batch: Batch) -> None:
    asked: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    found = vlm.generate(**batch, **FIXED, **asked, return_dict_in_generate=True, output_scores=True)
    scores = vlm.compute_transition_scores(found.sequences, found.scores, found.beam_indices).sum(1)
    torch.testing.assert_close(scores, found.sequences_scores, **CLOSE)
    rows = len(batch["input_ids"])
    best = found.sequences_scores.view(rows, 2)
    assert found.sequences.shape == (2 * rows, batch["input_ids"].shape[1] + NEW) and (best[:, 0] >= best[:, 1]).all()


def test_a_dict_has_scores_logits_attentions_and_hidden_states_of_every_token(vlm: Any, batch: Batch) -> None:
    named = ("scores", "logits", "attentions", "hidden_states")
    asked = {f"output_{name}": True for name in named}
    found = vlm.generate(**batch, **FIXED, **asked, return_dict_in_generate=True)
    rows, length = batch["input_ids"].shape
    sizes = vlm.config.vlm_sizes
    assert [len(found[name]) for name in named] == [NEW] * 4
    lengths = [length, 1, 1, 1]
    assert [step[0].shape for step in found.hidden_states] == [(rows, count, sizes.hidden) for count in lengths]
    assert [step[-1].shape for step in found.attentions] == [
        (rows, sizes.num_heads, count, length + step) for step, count in enumerate(lengths)
    ]
    last = vlm(**batch).logits[:, -1]
    torch.testing.assert_close(found.logits[0], last.float(), **CLOSE)


def test_generation_goes_on_from_what_is_cached(vlm: Any, batch: Batch, greedy: dict[str, Tensor]) -> None:
    half = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    first = vlm.generate(**batch, **half, return_dict_in_generate=True)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(first.sequences[:, -2:])], dim=1)
    whole = vlm.generate(first.sequences, attention_mask=mask, past_key_values=first.past_key_values, **half)
    assert torch.equal(whole, greedy["batch"])


def test_a_string_ends_an_answer(vlm: Any, row: Batch, processor: HunYuanVLMoTProcessor) -> None:
    begins = row["input_ids"].shape[1]
    answer = vlm.generate(**row, **FIXED)[0, begins:]
    stop = processor.tokenizer.decode(answer[:2])
    options = {"max_new_tokens": NEW, "do_sample": False, "stop_strings": [stop], "tokenizer": processor.tokenizer}
    assert vlm.generate(**row, **options)[0, begins:].tolist() == answer[:2].tolist()


def test_settings_of_generation_are_kept_with_the_weights(vlm: Any, row: Batch, tmp_path: Path) -> None:
    kept = make_vlm()
    kept.generation_config = GenerationConfig(max_new_tokens=3, min_new_tokens=3, num_beams=2, do_sample=False)
    kept.save_pretrained(tmp_path)
    again: Any = type(vlm).from_pretrained(tmp_path)
    assert again.generation_config.num_beams == 2
    assert torch.equal(again.generate(**row), vlm.generate(**row, max_new_tokens=3, min_new_tokens=3, num_beams=2))
