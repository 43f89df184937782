"""The lab's own tokenizer for the small presets: byte-level BPE with the reference's special token strings.

Each integer 0..1000 is one token (coordinates), as are the tags of reasoning and of answers. Any text survives a round
trip. The vocabulary is fixed: `tokenizer.json` holds it; `python -m rl_lab.model.tokenizer FOLDER` writes it again from
the text below, everyday English words and the sentences of a robot at a table. It was written for this project.
Changing a letter of it changes the vocabulary and thereby breaks every checkpoint trained with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rl_lab.common.reading import read_object

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


# Letters take one leading space along; numbers stand alone, so "at 512" and "(512" end in the same token.
_SPLIT = r"(?<!\d)1000(?!\d)|\d{1,3}| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_FRAMES = ("the {}", "a {} ", "it is {}.", "is it {}?", "{}, then", "and {}", "not {};")


def lines() -> Iterator[str]:
    """The corpus, line by line, always in the same order."""
    for word in (WORDS + FORMS).split():
        for frame in _FRAMES:
            yield frame.format(word)
    for word in OPENERS.split():
        yield from [f"{word} it"] * 8
    for _ in range(20):
        yield from SENTENCES.strip().splitlines()


WORDS = """
a able about above across act action active actually add after again against age ago agree ahead aim air align aligned
all allow almost alone along already also although always am among amount an and angle another answer any anyone
anything apart appear apple approach are area arm arms around arrange arrive arrow as ask aside at attach attempt
attention available avoid away axis back background backward bad bag balance ball banana bar base basket be bear
because become bed been before begin behind being believe below bench beside best better between beyond big bin bit
black block blocks blue board body book border both bottle bottom bowl box boxes break bright bring broken brown brush
build but button buy by cabinet cable call came camera can cannot cap car card careful carefully carry case catch
cause center centre certain chair chance change check choice choose circle clean clear clearly click clip clock close
closed closer closest cloth coffee cold collect collide collision color colour column come common compare complete
completely confirm connect consider contact contain container continue control cook cool corner correct could count
counter cover crash cross cube cup current currently curve cut cylinder dark day decide deep degree degrees depth
describe desk detail detect determine did differ difference different direct direction dirty dish distance do does dog
done door down draw drawer drink drop dropped dry due during each early easy edge egg eight either elbow empty end
enough enter equal error even ever every everything exact exactly example except expect explain extend eye face fact
fail failed failure fall far farther fast feel fell few fifth figure fill final finally find finger fingers finish
firm first fit five fix flat flip floor fold follow following food for force forget fork form forward found four
fourth fragile frame free fridge from front fruit full further gap gate gave general gently get give given glass glove
go goal goes going gone good got grab grasp gray green grey grip gripper grippers ground group grow guess had half
hammer hand handle handover hands hang happen hard has have he head hear heavy height held help her here high higher
highest him his hit hold holding hole home hook horizontal hot hour house how however human hundred i idea if image
imagine important impossible in inch inside instead instruction into inverse is it item items its itself jar job join
joint just keep kettle key keyboard kind kitchen knee knife knob know label lamp laptop large larger largest last late
later lay layer lead lean least leave left leg length less let level lever lid lie lift lifted light like likely limit
line link list little load local locate location long look loose lose lost lot low lower lowest made main make makes
man many map mark marker match maximum may me mean means measure meet metal meter middle might milk mind minimum
minute mirror miss missing mistake mouse mouth move moved movement moving mug must my nail name narrow near nearer
nearest necessary need needed needs never new next nice night nine no none nor normal north not note nothing notice
now number object objects obstacle occur of off often oil ok old on once one ones only onto open opening operate
opposite or orange order other others our out outer outside oven over overlap own pad page pair pan paper parallel
part parts pass past path pause pen pencil people perhaps person phone photo pick picture piece pieces pillow pin pink
pipe place placed plan plane plant plastic plate play please plug point points pose position possible pot potato pour
precise press pretty prevent previous probably problem proceed properly pull purple purpose push put puts putting
question quick quickly quiet quite rack raise ranking reach reached read ready real really rear reason red release
remain remember remote remove repeat require rest result return reverse right rigid ring rise robot roll roller room
rotate rotation rough round row rubber rule run safe safely same saw say says scale scan scene scissors screen screw
second see seem seen select sense separate sequence set seven shake shall shape sharp she shelf shift shoe short
should shoulder show side sides similar simple since single sink sit six size skill slice slide slightly slip slope
slot slow slowly small smaller smallest smooth so soap soft solid some someone something soon sort south space spatial
speed sphere spin sponge spoon square stable stack stacked stacking stage stand stapler start state stay steady step
steps stick still stop store straight strong such sugar support sure surface sweep switch table take taken takes
taking tall taller target task tea tell ten than that the their them then there therefore these they thick thin thing
things think third this those though three through throw tight tilt time tip tipped to together tool top total touch
toward towards towel toy track train transfer tray tree triangle trigger true try turn twelve twenty twist two type
unable under understand undo unit unstable until up upper upright upside upward us use used using usual valid value
vertical very view visible vision visual wait walk wall want warm was wash watch water way we weight well went were
west wet what wheel when where whether which while white who whole why wide width will window wipe wire with within
without wood wooden word words work world would wrap wrist write wrong yellow yes yet you your zero zone
"""

FORMS = """
actions adjacent agent aligning angles animals answers apples areas assemble attached bags balls bananas bars baskets
bears bigger biggest bins birds blocked boards bodies boil books bottles bowls boxed bricks bridge buttons cabinets
cakes cameras carried carrying cars cards cats chairs choices chosen circles closing clothes coins coloured columns
comes corners counting crossing cubes cups cylinders dishes dogs doors dots drawers drawing drops edges ends entire
facing falling falls figures flowers forks forms frames fully gaps girl boy glasses grasped grasping grips guide
handed handing handles happens hats heights hints holds holes horizontally houses images inches joints keys kids
kitchens knives labels lamps lays leads leaning leaves legs letters levels lids lifting lines lying locations looking
machine marks mat measured mine mirrors moves mugs names notes numbers oranges orders overlaps pads pairs pans papers
paths pens phones pictures pile pins placement places placing plates playing positions pots presses pulled pulling
pushed pushing questions rails raised reaches reaching regions relative released resting rests riding rings robots
rolling rooms rotated rows runs sees sets shadow shapes sheep shelves shirt shoes shown shows sign sitting sizes sky
slots sorting spatially spoons squares stacks standing stands starting starts steer stops stored street strip tables
tallest tasks taxi thinking tilting tires tools touches touching tower towels toys tracks trees triangles trucks
turned turning turns types units vase vertically views walls watches wearing wheels windows worked working
"""
"""Plurals, verb forms and more nouns."""

OPENERS = """
A After All An And Are Arrange At Because Before Both Bring Build But Can Carry Check Close Count Do Does Each Find
First For From Give Given Grab Grasp Hand Hold How If In Is It Keep Left Let Lift Line Look Make Move My No Not Now On
Once One Open Order Pass Pick Place Point Press Pull Push Put Raise Reach Release Right Rotate Set She Show Since So
Sort Stack Stand Step Take That The Then There Therefore These They This Three Turn Two Use Wait We What When Where
Which While Who Why With Yes You
"""
"""Words that open a sentence."""

SENTENCES = """
Pick up the red block and place it on the blue pad.
Use the left arm to grab the block, then hand it over to the right arm.
Stack the green block on top of the red block in the middle of the table.
Arrange the red, green and blue blocks in a row from left to right.
Grab the roller with both arms and lift it off the table.
Lift the pot by its two handles and keep it level.
Which object is closest to the gripper? The mug is closest, because it is nearer than the bottle.
Where is the handle of the drawer? Point to it.
How many blocks are on the table? There are three blocks: one red, one green and one blue.
Is the cup to the left of the plate? Yes, it is.
First I look at the image. The red cube is in front of the bowl, so the answer is no.
Let me think step by step. The camera sees the table from above; the far edge is at the top of the image.
The robot should move its arm forward, close the gripper, and then raise the object.
What should the robot do next to finish the task? It should open the gripper and release the block.
The action failed: the block tipped over and fell off the table. Try again from a safe position.
The distance between the two objects is larger than the width of the gripper.
Therefore, the correct option is B. I am not sure; wait, let me check again.
Put the block on the pad. Advantage: positive
Put the block on the pad. Advantage: negative
A. left  B. right  C. above  D. below
"""


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
