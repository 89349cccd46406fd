"""What a reader can be left to work out: pronouns, "there", "it", "the fox". The one home of these rules.

`resolve` reads a pronoun the way a careful reader would; `refer` uses a reference only where it reads back
to what was meant. The rules, strict on purpose:
- she / he: exactly one character of that pronoun was seen in the last WINDOW frames, and no other character
  of that pronoun is in the sentence; within a sentence, the one named before.
- they: the pair last seen together, with nobody else since nor in the last two frames; or, while no two have
  been seen together, the only two of the story. Both seen in the last WINDOW frames.
- there, or no place at all: the place of the frame before.
- it: the only thing held in the latest of the last two frames that shows any.
- the fox: the cast has one fox.
"""

import random
import re
from collections.abc import Sequence

from storyv_lite.train.toonworld.captions import (
    Part,
    Sentence,
    What,
    Where,
    Who,
    spell_what,
    spell_where,
    spell_who,
)
from storyv_lite.train.toonworld.cast import CAST, HELD_OUT, member
from storyv_lite.train.toonworld.scene import Scene

WINDOW = 5
OBJECT = {"she": "her", "he": "him", "they": "them"}
_NAMING = {word for who in CAST + HELD_OUT for word in (who.name, who.kind)}


def names_of(scene: Scene) -> tuple[str, ...]:
    return tuple(actor.name for actor in scene.actors)


def resolve(pronoun: str, past: Sequence[Scene]) -> tuple[str, ...]:
    """The characters "she", "he" or "they" denotes after the frames of `past`; () where nobody could tell."""
    recent = {name for scene in past[-WINDOW:] for name in names_of(scene)}
    if pronoun != "they":
        fits = [name for name in recent if member(name).pronoun == pronoun]
        return tuple(fits) if len(fits) == 1 else ()
    seen = [set(names_of(scene)) for scene in past]
    together = max((index for index, names in enumerate(seen) if len(names) > 1), default=None)
    if together is None:
        pair = since = set().union(*seen)
    else:
        pair, since = seen[together], set().union(*seen[together:], *seen[-2:])
    return tuple(sorted(pair)) if len(pair) == 2 and since <= pair <= recent else ()


def resolve_thing(past: Sequence[Scene]) -> str | None:
    """The prop "it" denotes, or None."""
    for scene in reversed(past[-2:]):
        held = [actor.prop for actor in scene.actors if actor.prop]
        if held:
            return held[0] if len(held) == 1 else None
    return None


def distance(names: Sequence[str], past: Sequence[Scene]) -> int:
    """How many frames back the one of `names` not seen for longest was seen last (1: the frame before)."""
    return max(
        next((back for back, scene in enumerate(reversed(past), 1) if name in names_of(scene)), 0)
        for name in names
    )


def is_nameless(text: str) -> bool:
    """No name, no kind word, no possessive of either."""
    return not _NAMING & set(re.findall(r"[a-z]+", text.lower()))


def competes(names: Sequence[str], past: Sequence[Scene]) -> bool:
    """Whether another pronoun would denote a character who is not among `names`."""
    return any(set(resolve(pronoun, past)) - set(names) for pronoun in ("she", "he"))


def refer(
    sentence: Sentence, scene: Scene, past: Sequence[Scene], rng: random.Random
) -> tuple[Sentence, int]:
    """`sentence` of `scene` with references instead of slots, and how far back its furthest antecedent lies.

    The distance is 0 where no pronoun leaves the sentence. Draws from `rng`; the result holds only strings.
    """
    plain = rng.random() < 0.84  # pronouns wherever they are clear; else any mix of ways to refer
    said: set[str] = set()
    furthest = 0
    words: list[Part] = []
    for part in sentence:
        if isinstance(part, Who):
            word, far = _who(part, scene, past, said, plain, rng)
            furthest = max(furthest, far)
            said.update(part.names)
        elif isinstance(part, Where):
            word = _where(part, past, rng)
        elif isinstance(part, What):
            word = _what(part, scene, past, rng)
        else:
            word = part
        words.append(word)
    return tuple(words), furthest


def _who(
    who: Who, scene: Scene, past: Sequence[Scene], said: set[str], plain: bool, rng: random.Random
) -> tuple[str, int]:
    pronouns = [_pronoun((name,), scene, past, said) for name in who.names]
    choice = rng.random()
    if len(who.names) == 2:
        they = _pronoun(who.names, scene, past, said)
        if they and (plain or choice < 0.3):
            return _case(they, who), distance(who.names, past)
        known = [pronoun is not None for pronoun in pronouns]
        if who.case == "subject" and sum(known) == 1 and choice < 0.4:
            one, other = (0, 1) if known[0] else (1, 0)
            return f"{pronouns[one]} and {who.names[other].capitalize()}", distance((who.names[one],), past)
    elif len(who.names) == 1 and pronouns[0] and (plain or choice < 0.3):
        name = who.names[0]
        return _case(pronouns[0], who), 0 if name in said else distance((name,), past)
    seen = {name for earlier in past for name in names_of(earlier)}
    if choice > (0.75 if plain else 0.6) and set(who.names) <= seen:
        return " and ".join(f"the {member(name).kind}" for name in who.names), 0
    return spell_who(who), 0


def _pronoun(names: tuple[str, ...], scene: Scene, past: Sequence[Scene], said: set[str]) -> str | None:
    """The pronoun that reads back to `names` here, or None."""
    if len(names) == 2:
        return "they" if set(resolve("they", past)) == set(names) else None
    pronoun = member(names[0]).pronoun
    rivals = [name for name in names_of(scene) if member(name).pronoun == pronoun]
    if pronoun == "they" or len(rivals) > 1 or len(names) > 2:
        return None
    return pronoun if names[0] in said or resolve(pronoun, past) == names else None


def _case(pronoun: str, who: Who) -> str:
    return pronoun if who.case == "subject" else OBJECT[pronoun]


def _where(where: Where, past: Sequence[Scene], rng: random.Random) -> str:
    choice = rng.random()
    if where.role == "to" or where.place != past[-1].place or choice < 0.2:
        return spell_where(where)
    if where.role == "bare":
        return "there"
    return "there" if where.role == "end" and choice < 0.32 else ""


def _what(what: What, scene: Scene, past: Sequence[Scene], rng: random.Random) -> str:
    choice = rng.random()
    held = [actor.prop for actor in scene.actors if actor.prop]
    if len(held) == 1 and resolve_thing(past) == what.prop and choice < 0.7:
        return "it"
    known = any(actor.prop == what.prop for earlier in past[-WINDOW:] for actor in earlier.actors)
    return f"the {what.prop}" if known and len(held) == 1 and choice < 0.95 else spell_what(what)
