"""What can be said about a scene in plain English: templates over three kinds of slots (who, where, what).

Knows grammar, not how a scene is drawn nor what a reader can do without (references.py decides that): a
sentence is composed once and said twice, every name and place spelled out (`original`) or with references.
A frame shows what its sentence tells: a prop that is not named is not there, a bare "is" means standing.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from storyv_lite.train.toonworld.cast import CAST, HELD_OUT, member
from storyv_lite.train.toonworld.phrases import (
    APART,
    APART_AT,
    AT,
    BESIDE,
    BESIDE_AT,
    COMES,
    DOES,
    DOING,
    GIVE,
    GOES,
    GREET,
    HOLDS,
    IN,
    JOIN,
    MEET,
    OPENERS,
    READS,
    RETURNS,
    SAME,
    SAME_AT,
    SAME_EACH,
    SAME_ONE,
    SINGLE,
    SINGLE_AT,
    SINGLE_BYE,
    SINGLE_HOLDING,
    SINGLE_IDLE,
    THING,
    THREE,
    TO,
    plural,
)
from storyv_lite.train.toonworld.scene import POSITIONS, Actor, Scene

MAX_WORDS = 28
LAYOUT = {1: ("middle",), 2: ("left", "right"), 3: POSITIONS}  # where nothing is said
MOVES: Mapping[str, Mapping[str, tuple[str, ...]]] = {"go": GOES, "come": COMES, "return": RETURNS}


@dataclass(frozen=True)
class Who:
    """A mention of one or more characters; `full` says "Milo the fox"."""

    names: tuple[str, ...]
    case: str = "subject"  # or "object": him, her, them
    full: bool = False


@dataclass(frozen=True)
class Where:
    """A place phrase. `role`: "end" and "front" can be left out, "bare" becomes "there", "to" is a move."""

    place: str
    words: str
    role: str = "end"


@dataclass(frozen=True)
class What:
    """A prop that someone has."""

    prop: str


Part = str | Who | Where | What
Sentence = tuple[Part, ...]


def original(scene: Scene, rng: random.Random) -> str:
    """One caption of `scene` as a person would type it: names and places spelled out, 30 words at most."""
    return say(compose(scene, rng))


def say(
    sentence: Sentence,
    who: Callable[[Who], str] | None = None,
    where: Callable[[Where], str] | None = None,
    what: Callable[[What], str] | None = None,
) -> str:
    """The text of a sentence; the three functions word its slots and default to spelling everything out."""
    words: list[str] = []
    for part in sentence:
        match part:
            case Who():
                words.append((who or spell_who)(part))
            case Where():
                words.append((where or spell_where)(part))
            case What():
                words.append((what or spell_what)(part))
            case _:
                words.append(part)
    text = re.sub(r"\s*,(\s*,)*", ",", " ".join(word for word in words if word)).strip(" ,")
    return text[0].upper() + text[1:] + "."


def spell_who(who: Who) -> str:
    names = [name.capitalize() + (f" the {member(name).kind}" if who.full else "") for name in who.names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def spell_where(where: Where) -> str:
    return where.words + (" ," if where.role == "front" else "")


def spell_what(what: What) -> str:
    return THING[what.prop]


def plain(scene: Scene, placed: bool) -> str:
    """The one wording in which every fact has its own place: no two scenes differ in more than their words.

    Characters stand in the order of the cast. `placed` says where they are; else that was left open, and the
    order of the cast is the order from left to right.
    """
    return ", ".join(plain_clauses(scene, placed)) + "."


def plain_clauses(scene: Scene, placed: bool) -> list[str]:
    """What `plain` joins: one clause for each character, the place last."""
    order = [who.name for who in CAST + HELD_OUT]
    actors = sorted(scene.actors, key=lambda actor: order.index(actor.name))
    positions = [actor.position for actor in actors] if placed else LAYOUT[len(actors)]
    clauses = [
        f"{actor.name.capitalize()} {actor.action} {position} "
        f"with {THING[actor.prop] if actor.prop else 'still hands'}"
        for actor, position in zip(actors, positions, strict=True)
    ]
    return [*clauses, IN[scene.place][0]]


def says_position(text: str) -> bool:
    """Whether a caption tells who stands left, in the middle or right."""
    return not set(POSITIONS).isdisjoint(re.findall("[a-z]+", text.lower()))


def mentions(sentence: Sentence) -> tuple[Who, ...]:
    return tuple(part for part in sentence if isinstance(part, Who))


def compose(
    scene: Scene,
    rng: random.Random,
    *,
    event: str | None = None,
    opener: str | None = None,
    still: frozenset[str] = frozenset(),
    newcomer: str = "",
) -> Sentence:
    """Choose a wording for `scene` (one to three actors).

    `event` asks for a sentence that fits the scene: "go", "come", "return", "join", "greet", "give",
    "goodbye"; in a story
    "" rules these out, None leaves them to chance. `still` names actors who go on doing what they did,
    `newcomer` the one who joins the other.
    """
    if opener is None:
        opener = rng.choice(tuple(OPENERS)[:-1]) if rng.random() < 0.1 else ""
    progressive = rng.random() < OPENERS.get(opener, 0.65)
    for attempt in range(8):
        brief = attempt > 2 or len(scene.actors) > 2 or rng.random() < 0.4
        words = _Words(rng, progressive or attempt > 2, brief, still)
        body = _body(scene, words, event, front=not opener, newcomer=newcomer)
        sentence = (opener, *body) if opener else body
        if len(say(sentence).split()) <= MAX_WORDS:
            break
    return sentence


@dataclass(frozen=True)
class _Words:
    """The choices that hold for a whole sentence: tense and how long-winded it is."""

    rng: random.Random
    progressive: bool
    brief: bool
    still: frozenset[str]

    def pick(self, options: tuple[str, ...]) -> str:
        return options[0] if self.brief else self.rng.choice(options)

    def does(self, actor: Actor, many: bool = False) -> str:
        be = "are" if many else "is"
        if actor.name in self.still:
            return f"{be} still {DOING[actor.action][0]}"
        if self.progressive:
            return f"{be} {self.pick(DOING[actor.action])}"
        return plural(self.pick(DOES[actor.action])) if many else self.pick(DOES[actor.action])

    def carry(self, actor: Actor, after: str = "") -> Sentence:
        """`after`: the verb before it, which "and holding" must continue ("" where nothing may follow on)."""
        if actor.prop is None:
            return ()
        options = ["with"]
        if actor.action != "sleeping":
            if actor.prop == "umbrella":
                options.append("under")
            if after:
                verb = (
                    "reading"
                    if actor.prop == "book" and actor.action in ("sitting", "standing")
                    else "holding"
                )
                if actor.name in self.still or self.progressive:
                    options.append(f"and {verb}")
                else:
                    options.append("and reads" if verb == "reading" else "and holds")
        return self.rng.choice(options), What(actor.prop)

    def late(self, actor: Actor) -> Sentence:
        """What is carried, said after the place or after a pause."""
        if actor.prop is None:
            return ()
        if actor.action == "sleeping" or self.rng.random() < 0.4:
            return "with", What(actor.prop)
        return ",", "holding", What(actor.prop)

    def says(self, actor: Actor) -> Sentence:
        """The whole predicate of one actor, prop included."""
        if actor.prop and actor.action == "standing" and self.rng.random() < 0.6:
            return self.holds(actor)
        does = self.does(actor)
        return does, *self.carry(actor, does)

    def holds(self, actor: Actor) -> Sentence:
        assert actor.prop is not None
        options = (READS if actor.prop == "book" else HOLDS)[self.progressive]
        return self.rng.choice(options), What(actor.prop)


def _body(scene: Scene, words: _Words, event: str | None, front: bool, newcomer: str) -> Sentence:
    """The sentence without its opener; `front` allows the place or the position to come first."""
    rng, actors = words.rng, list(scene.actors)
    if len(actors) == 2 and (actors[0].name == newcomer if newcomer else rng.random() < 0.5):
        actors.reverse()
    names = tuple(actor.name for actor in actors)
    phrase = rng.choice(IN[scene.place])
    full = rng.random() < 0.08
    parts: dict[str, Sentence] = {
        "where": (Where(scene.place, phrase),),
        "front": (Where(scene.place, phrase, "front"),),
        "bare": (Where(scene.place, phrase, "bare"),),
        "ab": (Who(names, full=full and len(names) == 1),),
    }
    for letter, actor in zip("abc", actors, strict=False):
        parts[letter] = (Who((actor.name,), full=full),)
        parts[f"{letter}_object"] = (Who((actor.name,), "object"),)
        parts[f"at_{letter}"] = (words.pick(AT[actor.position]),)
        parts[f"says_{letter}"] = words.says(actor)
    if event is None and rng.random() < 0.25:
        event = _chance_event(actors)
    if event and event in MOVES:
        verb = rng.choice(MOVES[event][actors[0].action])
        verb = plural(verb) if len(actors) > 1 else verb
        return parts["ab"] + (verb, Where(scene.place, rng.choice(TO[scene.place]), "to"))
    if len(actors) == 1:
        options = _single(actors[0], words, parts, event)
    elif len(actors) == 2:
        options = _pair(actors, words, parts, event)
    else:
        options = THREE
    if not front:
        options = tuple(t for t in options if not t.startswith(("{front}", "{at"))) or (options[0],)
    return _fill(rng.choice(options), parts)


def _chance_event(actors: list[Actor]) -> str | None:
    moods = {(actor.action, actor.prop) for actor in actors}
    return "go" if len(moods) == 1 and moods <= {("standing", None), ("running", None)} else None


def _single(actor: Actor, words: _Words, parts: dict[str, Sentence], event: str | None) -> tuple[str, ...]:
    if event == "goodbye":
        return SINGLE_BYE
    does = words.does(actor)
    still = ("still",) if actor.name in words.still else ()
    parts["does"], parts["doing"] = (does,), still + (words.pick(DOING[actor.action]),)
    parts["at"], parts["late"] = parts["at_a"], words.late(actor)
    if words.rng.random() < (0.3 if actor.position != "middle" else 0.1):
        parts["carry"] = words.carry(actor)
        return SINGLE_AT
    if actor.action == "standing" and not still:
        if actor.prop is None:
            return SINGLE_IDLE
        if words.rng.random() < 0.6:
            parts["holds"] = words.holds(actor)
            return SINGLE_HOLDING
    parts["carry"] = words.carry(actor)
    parts["carry_on"] = words.carry(actor, does)
    return SINGLE


def _pair(
    actors: list[Actor], words: _Words, parts: dict[str, Sentence], event: str | None
) -> tuple[str, ...]:
    rng, (first, second) = words.rng, actors
    idle = [not a.prop and a.action == "standing" for a in actors]
    if (
        idle[1] and not idle[0]
    ):  # the idle one is what the other stands beside, waves to or is given something by
        for left, right in (("a", "b"), ("a_object", "b_object"), ("at_a", "at_b"), ("says_a", "says_b")):
            parts[left], parts[right] = parts[right], parts[left]
        first, second, idle = second, first, [True, False]
    gives = idle[0] and second.action == "standing" and second.prop
    if gives:
        parts["what"] = (What(second.prop or ""),)
    chance = rng.random() if event is None else 1.0
    if event == "give" or (gives and chance < 0.4):
        return GIVE
    if event == "greet" or (idle[0] and (second.action, second.prop) == ("waving", None) and chance < 0.4):
        return GREET
    if event == "join":
        return JOIN
    if all(idle) and chance < 0.5:
        return MEET
    stated = rng.random() < 0.35
    # Who runs next to someone runs with them: no such wording where the other one stands.
    if idle[0] and not idle[1] and second.action != "running" and rng.random() < 0.3:
        parts["says_b"] = words.does(second), *words.carry(second)
        parts["side"] = ("left" if second.position == "left" else "right",)
        return BESIDE_AT if stated else BESIDE
    kept = {first.name, second.name} & words.still
    if first.action == second.action and len(kept) != 1 and rng.random() < 0.93:
        together = (words.does(first, many=True),)
        parts["do"], parts["doing"] = together, (words.pick(DOING[first.action]),)
        if not kept and rng.random() < 0.35:
            parts["do"] = parts["doing"] = _jointly(together[0], first.action, rng)
        if first.prop == second.prop and first.prop:
            parts["what"] = (What(first.prop),)
            return SAME_EACH
        if not first.prop and not second.prop:
            if stated:
                return SAME_AT
            return SAME if not kept and parts["do"] == together else SAME[:3]
        if not first.prop or not second.prop:
            if second.prop is None:
                parts["b"] = parts["a"]
            parts["what"] = (What(first.prop or second.prop or ""),)
            return SAME_ONE
    options: tuple[str, ...] = APART_AT if stated else APART
    if any(str(part).startswith("and ") for part in parts["says_a"]):  # not "holds a ball and Zara sleeps"
        options = tuple(template for template in options if "{says_a} and" not in template)
    return options


def _jointly(verb: str, action: str, rng: random.Random) -> Sentence:
    """ "are jumping" -> "are both jumping" or "are jumping together"."""
    if rng.random() < 0.5 or action == "sleeping":
        head, _, rest = verb.partition(" ")
        return (f"are both {rest}" if head == "are" else f"both {verb}",)
    return (f"{verb} together",)


def _fill(template: str, parts: Mapping[str, Sentence]) -> Sentence:
    filled: list[Part] = []
    for token in template.split():
        filled.extend(parts[token[1:-1]] if token.startswith("{") else (token,))
    return tuple(filled)
