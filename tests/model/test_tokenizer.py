"""The lab's tokenizer: fixed, complete, and the same when trained again."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lab.benchmarks.golden import golden_path
from rl_lab.model import tokenizer as tokenizer_corpus
from rl_lab.model.tokenizer import (
    FOLDER,
    NUMBERS,
    ROLES,
    SPECIAL_TOKENS,
    TAGS,
    load_tokenizer,
    save_tokenizer,
    special_token_ids,
    write_tokenizer,
)

TOKENIZER = load_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_training_again_writes_the_same_bytes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in written:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_vocabulary_is_small_and_dense() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert len(vocabulary) == len(TOKENIZER) <= 4096
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_every_coordinate_is_one_token_wherever_it_stands() -> None:
    for number in NUMBERS:
        single = ids(number)
        assert len(single) == 1
        for text in (f"at {number}.", f"({number},", f"<point>{number}</point>"):
            assert single[0] in ids(text)
    assert len({ids(number)[0] for number in NUMBERS}) == 1001


def test_special_tokens_and_tags_are_single_tokens() -> None:
    for token in SPECIAL_TOKENS + TAGS:
        assert len(ids(token)) == 1
        assert ids(token)[0] in ids(f"the{token}block")


def test_everyday_words_are_single_tokens() -> None:
    words = (tokenizer_corpus.WORDS + tokenizer_corpus.FORMS).split()
    assert [word for word in words if len(ids(f" {word}")) != 1] == []


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert TOKENIZER.decode(ids(text)) == text


def test_roles_are_found_by_name_in_any_tokenizer_of_the_family() -> None:
    for tokenizer in (TOKENIZER, load_tokenizer(golden_path("policy"))):
        found = special_token_ids(tokenizer)
        assert {role: tokenizer.convert_ids_to_tokens(index) for role, index in found.items()} == ROLES


def test_a_saved_tokenizer_keeps_the_names_of_its_special_tokens_where_transformers_4_reads_them(
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|place|>"]})
    save_tokenizer(tokenizer, tmp_path)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["extra_special_tokens"]["image_token"] == ROLES["image"]
    assert fields["additional_special_tokens"] == ["<|place|>"]
    assert "model_specific_special_tokens" not in fields and "image_token" not in fields
    again = load_tokenizer(tmp_path)
    assert again.image_newline_token == ROLES["row_end"] and again.extra_special_tokens == ["<|place|>"]
    save_tokenizer(again, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
