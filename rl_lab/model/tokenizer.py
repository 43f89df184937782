"""The lab's own tokenizer for the small presets: byte-level BPE with the reference's special token strings.

Each integer 0..1000 is one token (coordinates), as are the tags of reasoning and of answers. Any text survives a round
trip. The vocabulary is fixed: `tokenizer.json` holds it; `python -m rl_lab.model.tokenizer FOLDER` writes it again from
`tokenizer_corpus`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rl_lab.model.tokenizer_corpus import lines
from rl_lab.reading import read_object

FOLDER = Path(__file__).parent
CHAT_TEMPLATE = FOLDER / "chat_template.jinja"
VOCAB_SIZE = 3584

ASSISTANT = "<｜hy_Assistant｜>"
ROLES = {
    "bos": "<｜hy_begin▁of▁sentence｜>",
    "user": "<｜hy_User｜>",
    "vision_start": "<｜hy_place▁holder▁no▁666｜>",
    "vision_end": "<｜hy_place▁holder▁no▁667｜>",
    "row_end": "<｜hy_place▁holder▁no▁671｜>",
    "image": "<｜hy_place▁holder▁no▁669｜>",
    "video": "<｜hy_place▁holder▁no▁670｜>",
    "latent": "<｜hy_place▁holder▁no▁672｜>",
    "pad": "<｜hy_▁pad▁｜>",
    "eos": "<｜hy_end▁of▁sentence｜>",
}
"""Special tokens of the released tokenizer that the model or processor asks for, by role."""

NAMED_TOKENS = {
    "image_token": ROLES["image"],
    "video_token": ROLES["video"],
    "vision_start_token": ROLES["vision_start"],
    "vision_end_token": ROLES["vision_end"],
    "image_newline_token": ROLES["row_end"],
}
"""Names under which the released processor asks its tokenizer for special tokens."""

SPECIAL_TOKENS = (
    ROLES["pad"],
    ROLES["bos"],
    ROLES["eos"],
    ROLES["user"],
    ASSISTANT,
    "<｜hy_place▁holder▁no▁3｜>",
    ROLES["vision_start"],
    ROLES["vision_end"],
    "<｜hy_place▁holder▁no▁668｜>",
    ROLES["image"],
    ROLES["video"],
    ROLES["row_end"],
    ROLES["latent"],
)
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "answer", "point", "box") for slash in ("", "/"))
NUMBERS = tuple(str(number) for number in range(1001))

# Letters take one leading space along; numbers stand alone, so "at 512" and "(512" end in the same token.
_SPLIT = r"(?<!\d)1000(?!\d)|\d{1,3}| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s"


def train_tokenizer() -> Tokenizer:
    """Train on the corpus, then add the numbers: the same file for the same corpus."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = _pre_tokenizer()
    fixed = len(SPECIAL_TOKENS) + len(TAGS) + len(NUMBERS) - 10
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - fixed, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    learned.train_from_iterator(lines(), trainer)
    bpe = json.loads(learned.to_str())["model"]
    pieces = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *TAGS, *NUMBERS, *pieces]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in bpe["merges"]],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write_tokenizer(folder: Path) -> None:
    """Train and write the tokenizer files."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(),
        bos_token=ROLES["bos"],
        eos_token=ROLES["eos"],
        pad_token=ROLES["pad"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text(),
    )
    save_tokenizer(fast, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer files as transformers 4 reads them too, where the released code runs.

    It knows the class by an older name, wants the named special tokens where version 5 writes a list of the others, and
    that list under the name it had then. Version 5 reads both.
    """
    # The last call's padding and truncation stay in the backend, which would write them.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    unnamed = fields.pop("extra_special_tokens", None)
    named = NAMED_TOKENS | fields.pop("model_specific_special_tokens", {})
    fields = {key: value for key, value in fields.items() if key not in named} | {"extra_special_tokens": named}
    if unnamed:
        fields["additional_special_tokens"] = unnamed
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def load_tokenizer(folder: Path = FOLDER) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder; ours by default. ValueError when its files are missing or damaged."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}; a checkpoint folder holds its tokenizer files")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            read_object(folder / name)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"the tokenizer files in {folder} cannot be read ({said}); copy them again") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """ValueError for a tokenizer with ids that a model of `size` tokens does not know."""
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= size:
        raise ValueError(
            f"the tokenizer has the id {last} ({token!r}) but the model knows {size} tokens; it is of another model"
        )


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids by role, looked up by token string; ValueError naming the strings the tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in ROLES.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"tokenizer lacks the special tokens {missing}; use a tokenizer of the Hy-Embodied family")
    return {role: vocabulary[token] for role, token in ROLES.items()}


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
