"""The words of the glyphs world, in one place: scenes, captions, questions and the tokenizer read them here.

The tokenizer of the base model is word-level. Everything a caption or a question can say is in `WORDS`, and
so are a few dozen plain English words, so that somebody's own small example can be put to this model too. A
word that is not listed becomes `<unk>`.
"""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue")
#: Cell index -> words; cells are numbered in reading order on the 2x2 grid.
CELLS = ("top left", "top right", "bottom left", "bottom right")

CAPTION_PROMPT = "describe the image ."

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
UNKNOWN = "<unk>"
#: Ids 0 to 7, in this order. The names are Qwen's, so that chat templates and engines recognise them.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    VISION_START,
    VISION_END,
    IMAGE_PAD,
    VIDEO_PAD,
    UNKNOWN,
)

_GRAMMAR = "a and top bottom left right . is there ? yes no describe the image"
_ROLES = "system user assistant tool"
_PLAIN = (
    "an are be can do in it of on to with not or only you i this that what which where how many who "
    "please say tell name list count answer show see look hear write repeat word words sentence digit "
    "digits number object objects colour color picture video sound cell corner first second last next "
    "more less all every none nothing something here good bad true false short long helpful honest hello "
    "world thanks , ! :"
)
WORDS = (*_GRAMMAR.split(), *DIGITS, *COLOURS, *_ROLES.split(), *_PLAIN.split())
