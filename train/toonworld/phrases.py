"""The words of the cartoon world as tables: how places, actions and props are said, and sentence templates.

Knows no grammar: captions.py fills the templates. In a template {a} is a character, {front} a place that
comes first, {bare} one that cannot be left out, {where} one that can.
"""

import re
from collections.abc import Iterator, Mapping

from storyv_lite.train.toonworld.scene import PROPS

IN = {
    "meadow": ("in the meadow", "in the green meadow", "out in the meadow"),
    "beach": ("at the beach", "on the beach", "by the sea"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "snow": ("in the snow", "out in the snow", "in the snowy field"),
    "kitchen": ("in the kitchen", "in the sunny kitchen"),
    "bedroom": ("in the bedroom", "in the little bedroom"),
    "town": ("in town", "in the town", "in the street"),
    "hill": ("on the moonlit hill", "on the hill at night", "on the hill in the moonlight"),
}
TO = {
    "meadow": ("to the meadow", "into the meadow"),
    "beach": ("to the beach", "down to the sea"),
    "forest": ("to the forest", "into the woods"),
    "snow": ("out into the snow", "to the snowy field"),
    "kitchen": ("to the kitchen", "into the kitchen"),
    "bedroom": ("to the bedroom", "into the bedroom"),
    "town": ("to town", "into town"),
    "hill": ("to the moonlit hill", "up the moonlit hill"),
}
AT = {
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle",),
    "right": ("on the right", "on the right side"),
}
THING = {prop: ("an " if prop[0] in "aeiou" else "a ") + prop for prop in PROPS}

# The first of each is the plainest and is taken where a sentence must stay short.
DOING = {
    "standing": ("standing", "standing still"),
    "waving": ("waving", "waving hello"),
    "jumping": ("jumping", "jumping up and down"),
    "sitting": ("sitting", "sitting down"),
    "running": ("running", "running fast"),
    "sleeping": ("sleeping", "taking a nap", "asleep", "fast asleep"),
}
DOES = {
    "standing": ("stands", "stands still"),
    "waving": ("waves", "waves hello"),
    "jumping": ("jumps", "jumps up and down", "jumps high"),
    "sitting": ("sits", "sits down"),
    "running": ("runs", "runs fast"),
    "sleeping": ("sleeps", "takes a nap"),
}
# Who comes to where the story is: for the first time, or again after a goodbye.
COMES = {"standing": ("comes", "walks"), "running": ("runs", "comes running")}
RETURNS = {"standing": ("comes back", "walks back"), "running": ("runs back", "comes running back")}
GOES = {"standing": ("goes", "walks", "is going", "is walking"), "running": ("runs", "is running", "races")}
HOLDS = {
    False: ("holds", "has"),
    True: ("is holding", "is carrying"),
}  # by whether the sentence is progressive
READS = {False: ("reads", "has"), True: ("is reading",)}
# The little words captions.py writes itself (a test finds one that is missing here).
GLUE = "is are still and the both together with under holding reading holds reads left right"

OPENERS = {  # and how likely the progressive form is after each
    "then": 0.2,
    "next ,": 0.2,
    "after that ,": 0.3,
    "soon": 0.3,
    "later ,": 0.7,
    "now": 0.8,
    "meanwhile ,": 0.9,
}

SINGLE = (
    "{a} {does} {carry_on} {where}",
    "{a} {does} {carry_on} {where}",
    "{a} {does} {where} {late}",
    "{front} {a} {does} {late}",
    "{a} is {bare} , {doing} {carry}",
)
SINGLE_IDLE = ("{a} {does} {where}", "{a} {does} {where}", "{a} is {bare}")
SINGLE_HOLDING = ("{a} {holds} {where}", "{front} {a} {holds}", "{a} is {bare} {late}")
SINGLE_AT = (
    "{front} {a} {does} {carry} {at}",
    "{at} , {a} {does} {carry} {where}",
    "{a} is {at} , {doing} {carry} {where}",
)
SINGLE_BYE = ("{a} waves goodbye {where}", "{a} is waving goodbye {where}")
SAME = (
    "{ab} {do} {where}",
    "{ab} {do} {where}",
    "{front} {ab} {do}",
    "{ab} are {bare} , {doing}",
)
SAME_EACH = ("{ab} {do} {where} , each with {what}", "{front} {ab} {do} , each with {what}")
SAME_ONE = ("{ab} {do} {where} , and {b} has {what}", "{front} {ab} {do} , and {b} has {what}")
SAME_AT = ("{ab} {do} {where} , with {a_object} {at_a}", "{front} {ab} {do} , with {a_object} {at_a}")
APART = (
    "{a} {says_a} and {b} {says_b} {where}",
    "{a} {says_a} while {b} {says_b} {where}",
    "{a} {says_a} , and {b} {says_b} {where}",
    "{front} {a} {says_a} and {b} {says_b}",
    "{front} {a} {says_a} while {b} {says_b}",
)
APART_AT = (
    "{front} {a} {says_a} {at_a} and {b} {says_b} {at_b}",
    "{at_a} , {a} {says_a} , and {at_b} , {b} {says_b} {where}",
    "{front} {a} {says_a} {at_a} while {b} {says_b}",
)
BESIDE = ("{b} {says_b} next to {a_object} {where}", "{front} {b} {says_b} beside {a_object}")
BESIDE_AT = ("{b} {says_b} to the {side} of {a_object} {where}",)
MEET = (
    "{b} joins {a_object} {where}",
    "{b} meets {a_object} {where}",
    "{b} talks to {a_object} {where}",
    "{b} is talking to {a_object} {where}",
    "{b} looks at {a_object} {where}",
)
JOIN = MEET[:2]
GREET = ("{b} waves to {a_object} {where}", "{b} is waving to {a_object} {where}")
GIVE = (
    "{a} gives {what} to {b_object} {where}",
    "{a} hands {what} to {b_object} {where}",
    "{b} gets {what} from {a_object} {where}",
    "{b} takes {what} from {a_object} {where}",
)
THREE = (
    "{a} {says_a} , {b} {says_b} and {c} {says_c} {where}",
    "{front} {a} {says_a} , {b} {says_b} and {c} {says_c}",
)


def words() -> Iterator[str]:
    """Every lower-case word of every table here, with repetitions; names and kinds are not among them."""
    tables = (IN, TO, AT, THING, DOING, DOES, GOES, COMES, RETURNS, HOLDS, READS, tuple(OPENERS), GLUE)
    templates = (
        SINGLE,
        SINGLE_IDLE,
        SINGLE_HOLDING,
        SINGLE_AT,
        SINGLE_BYE,
        SAME,
        SAME_EACH,
        SAME_ONE,
        SAME_AT,
    )
    pairs = (APART, APART_AT, BESIDE, BESIDE_AT, MEET, GREET, GIVE, THREE)
    for phrase in _strings((tables, templates, pairs)):
        yield from re.findall("[a-z]+", re.sub(r"\{\w+\}", " ", phrase.lower()))
    for verb in _strings((DOES, GOES)):
        yield from plural(verb).split()


def plural(verb: str) -> str:
    """Of a third-person verb phrase: "takes a nap" becomes "take a nap", "is" becomes "are"."""
    head, _, rest = verb.partition(" ")
    stem = {"is": "are", "has": "have", "goes": "go"}.get(head, head[:-1])
    return stem + (" " + rest if rest else "")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from _strings(item)
