"""Who lives in the cartoon world: names, words for captions, colours and build. Draws nothing."""

from dataclasses import dataclass
from typing import Literal

from storyv_lite.errors import StoryVError


@dataclass(frozen=True)
class CastMember:
    """One character. Colours are "#rrggbb"; `scale` is the height next to the others' 1."""

    name: str
    kind: str
    pronoun: Literal["she", "he", "they"]
    description: str
    aliases: tuple[str, ...]
    skin: str
    pale: str
    cloth: str
    accent: str
    sleeve: str
    shoe: str
    scale: float = 1.0


MILO = CastMember(
    "milo", "fox", "he", "an orange fox in a blue jumper", ("the fox", "the orange fox"),
    skin="#f28a35", pale="#fff0da", cloth="#2f6fd0", accent="#ffffff", sleeve="#2f6fd0", shoe="#5a3f5c",
)  # fmt: skip
LUNA = CastMember(
    "luna", "bunny", "she", "a white bunny in a pink dress", ("the bunny", "the white bunny"),
    skin="#f7eef2", pale="#ffb9d0", cloth="#f0609c", accent="#ffe3ee", sleeve="#f0609c", shoe="#f7eef2",
    scale=0.96,
)  # fmt: skip
BRUNO = CastMember(
    "bruno", "bear", "he", "a big brown bear in a red vest", ("the bear", "the big bear"),
    skin="#925d36", pale="#e6bd8c", cloth="#d9352c", accent="#ffd35c", sleeve="#925d36", shoe="#7a4a2a",
    scale=1.12,
)  # fmt: skip
OLIVE = CastMember(
    "olive", "frog", "she", "a small green frog in a yellow raincoat", ("the frog", "the little frog"),
    skin="#6cc04a", pale="#d8f0a8", cloth="#ffd22e", accent="#c98a12", sleeve="#ffd22e", shoe="#e85c3c",
    scale=0.9,
)  # fmt: skip
REX = CastMember(
    "rex", "dinosaur", "he", "a purple dinosaur in teal shorts", ("the dinosaur", "the purple dinosaur"),
    skin="#9560d4", pale="#dcc4f6", cloth="#22bfae", accent="#ffd35c", sleeve="#9560d4", shoe="#7f4cbe",
    scale=1.06,
)  # fmt: skip
ZARA = CastMember(
    "zara", "girl", "she", "a girl with two hair buns in a red dotted dress", ("the girl",),
    skin="#c88a5c", pale="#33222c", cloth="#e63e50", accent="#ffffff", sleeve="#e63e50", shoe="#34407e",
)  # fmt: skip
OTTO = CastMember(
    "otto", "penguin", "he", "a penguin in a green hat", ("the penguin", "the little penguin"),
    skin="#34415c", pale="#ffffff", cloth="#35ad58", accent="#f79b2a", sleeve="#34415c", shoe="#f79b2a",
    scale=0.92,
)  # fmt: skip
KIKI = CastMember(
    "kiki", "cat", "she", "a cream cat in a teal cape", ("the cat", "the cream cat"),
    skin="#f3d9b4", pale="#6b4436", cloth="#0fa3a8", accent="#ffcf3d", sleeve="#f3d9b4", shoe="#6b4436",
    scale=0.98,
)  # fmt: skip
PIP = CastMember(
    "pip", "hedgehog", "they", "a hedgehog in orange dungarees", ("the hedgehog",),
    skin="#f7d6b4", pale="#6d5a78", cloth="#f0792c", accent="#ffd35c", sleeve="#f7d6b4", shoe="#6d5a78",
    scale=0.9,
)  # fmt: skip
NORA = CastMember(
    "nora", "owl", "she", "a plum owl in a yellow scarf", ("the owl",),
    skin="#8c4a6e", pale="#f8e2c8", cloth="#f7c531", accent="#f08a35", sleeve="#743a5a", shoe="#f08a35",
    scale=0.94,
)  # fmt: skip
FINN = CastMember(
    "finn", "turtle", "he", "a turtle in an orange cap", ("the turtle",),
    skin="#7fd0a0", pale="#f5e3a0", cloth="#8a5a3c", accent="#f2672e", sleeve="#7fd0a0", shoe="#7fd0a0",
    scale=0.96,
)  # fmt: skip
MAYA = CastMember(
    "maya", "koala", "she", "a blue-grey koala in a coral dress", ("the koala",),
    skin="#8fa3c0", pale="#f4f0f2", cloth="#ff7a5c", accent="#ffe9c9", sleeve="#ff7a5c", shoe="#7288a8",
)  # fmt: skip

CAST = (MILO, LUNA, BRUNO, OLIVE, REX, ZARA, OTTO, KIKI)
HELD_OUT = (PIP, NORA, FINN, MAYA)  # no training ever sees these: they test new-character cards
_BY_NAME = {member.name: member for member in CAST + HELD_OUT}


def member(name: str) -> CastMember:
    """The cast member of that lower-case name, trained or held out. Raises StoryVError for any other name."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise StoryVError(
            f"`{name}` is not in the cast: {', '.join(_BY_NAME)} are", "use one of these names in lower case"
        ) from None
