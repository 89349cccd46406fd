"""Stories told in frames: who is where, who comes and goes, what changes hands; both texts of every frame.

Knows continuity; wording is captions.py, references are references.py. A frame shows exactly those its
sentence speaks of. A story is the same however many of its frames are asked for: story(12)[:5] == story(5).
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from storyv_lite.errors import ConfigError
from storyv_lite.train.toonworld.captions import compose, plain, say, says_position
from storyv_lite.train.toonworld.cast import CAST, member
from storyv_lite.train.toonworld.phrases import OPENERS
from storyv_lite.train.toonworld.references import (
    competes,
    distance,
    is_nameless,
    names_of,
    refer,
    resolve,
)
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, PROPS, Actor, Scene
from storyv_lite.train.toonworld.splits import inside, seeds

MAX_FRAMES = 1000


@dataclass(frozen=True)
class StoryFrame:
    """One frame: its truth, its two texts of the same wording, and what makes the second one hard.

    `plain` says in fixed words what can be known of the scene from the story so far (captions.plain).
    `names` are the characters shown, left to right. `nameless`: the reference text holds no name and no kind
    word. `antecedent_distance`: frames back to the furthest antecedent, 0 without a pronoun.
    `competing`: some other pronoun would have denoted somebody else of the story.
    """

    scene: Scene
    original: str
    reference: str
    plain: str
    names: tuple[str, ...]
    nameless: bool
    antecedent_distance: int
    competing: bool


@dataclass(frozen=True)
class ToonStory:
    """`seed` lies in the range of the split the story was drawn for."""

    seed: int
    frames: tuple[StoryFrame, ...]


def sample_story(seed: int, frames: int, split: str = "train") -> ToonStory:
    """Draw the story of `seed`, with `frames` frames (1 to 1000), inside the seed range of `split`.

    A seed outside that range is folded into it. The same arguments give the same story everywhere.
    Raises ConfigError for a frame count out of range or an unknown split.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise ConfigError(f"a story of {frames} frames was asked for, 1 to {MAX_FRAMES} can be told")
    seed = inside(split, seed)
    rng = random.Random(f"story/{seed}")
    teller = _Teller(rng, seeds(split), rng.sample([who.name for who in CAST], len(CAST)))
    return ToonStory(seed, tuple(teller.tell() for _ in range(frames)))


@dataclass(frozen=True)
class _Plan:
    """What the next frame is to tell."""

    place: str
    actors: tuple[Actor, ...]
    event: str = ""
    opener: str = ""
    still: frozenset[str] = frozenset()
    newcomer: str = ""


@dataclass
class _Teller:
    """The state of the tale. `waiting` is the whole cast in the order in which it will appear."""

    rng: random.Random
    scene_seeds: range
    waiting: list[str]
    company: list[str] = field(default_factory=list)
    place: str = ""
    location: dict[str, str] = field(default_factory=dict)  # where everyone was seen last
    gone: set[str] = field(default_factory=set)  # who said goodbye
    past: list[Scene] = field(default_factory=list)
    since_move: int = 0
    opener: str = ""

    def tell(self) -> StoryFrame:
        plan = self.continue_() if self.past else self.begin()
        scene = Scene(plan.place, plan.actors, self.rng.choice(self.scene_seeds))
        sentence = compose(
            scene,
            self.rng,
            event=plan.event,
            opener=plan.opener,
            still=plan.still,
            newcomer=plan.newcomer,
        )
        reference, far = refer(sentence, scene, self.past, self.rng) if self.past else (sentence, 0)
        text = say(reference)
        names = names_of(scene)
        frame = StoryFrame(
            scene,
            say(sentence),
            text,
            plain(scene, says_position(text)),
            names,
            is_nameless(text),
            far,
            competes(names, self.past),
        )
        self.remember(plan, scene)
        return frame

    def remember(self, plan: _Plan, scene: Scene) -> None:
        self.since_move = self.since_move + 1 if plan.place == self.place else 0
        self.place = plan.place
        self.past = [*self.past[-60:], scene]
        for name in names_of(scene):
            self.location[name] = plan.place
            self.gone.discard(name)
            if name not in self.company:
                self.company.append(name)
        if len(self.company) == 1 and len(self.past) > 6:  # nobody stays alone for long
            self.company.append(self.waiting.pop(0))
        if plan.event == "goodbye":
            name = names_of(scene)[0]
            self.gone.add(name)
            if len(self.past) > 6 and self.rng.random() < 0.6:  # somebody new will come instead
                self.company.remove(name)
                self.waiting.append(name)
                self.company.append(self.waiting.pop(0))

    def begin(self) -> _Plan:
        size = self.rng.choices((1, 2, 3), (0.05, 0.5, 0.45))[0]
        mixed = {member(name).pronoun for name in self.waiting[:size]}
        if size > 1 and len(mixed) == 1 and self.rng.random() < 0.8:
            other = next(i for i, name in enumerate(self.waiting) if member(name).pronoun not in mixed)
            self.waiting[1], self.waiting[other] = self.waiting[other], self.waiting[1]
        self.company, self.waiting = self.waiting[:size], self.waiting[size:]
        names = self.company[: 2 if size > 1 and self.rng.random() < 0.55 else 1]
        return _Plan(self.rng.choice(PLACES), self.act(names, frozenset()))

    def continue_(self) -> _Plan:
        present = [
            name for name in self.company if self.location.get(name) == self.place and name not in self.gone
        ]
        away = [name for name in self.company if name not in present]
        busy = [name for name in away if name in self.location and name not in self.gone]
        ways = {
            "stay": 1.0 if present else 0.0,
            "go": (0.25 if self.since_move > 1 else 0.06) if present else 0.0,
            "enter": 0.4 if away else 0.0,
            "goodbye": 0.07 if len(present) > 1 and len(self.past) > 2 else 0.0,
            "meanwhile": 0.06 if busy else 0.0,
        }
        way = self.rng.choices(tuple(ways), tuple(ways.values()))[0]
        opener = self.rng.choice(tuple(OPENERS)[:-1]) if self.rng.random() < 0.33 else ""
        opener = self.opener = "" if opener == self.opener else opener
        if way == "go":
            names = present if len(present) < 3 and self.rng.random() < 0.6 else self.some(present)
            return self.go(self.rng.choice([place for place in PLACES if place != self.place]), names, opener)
        if way == "enter":
            return self.enter(self.rng.choice(away), present, opener)
        if way == "goodbye":
            actor = Actor(self.rng.choice(present), "waving", position=self.position())
            return _Plan(self.place, (actor,), "goodbye", opener)
        if way == "meanwhile":
            place = self.location[self.rng.choice(busy)]
            there = [name for name in busy if self.location[name] == place]
            return _Plan(place, self.act(there[:2], frozenset()), opener="meanwhile ,")
        names = self.some(present)
        plan = self.exchange(names, opener) if len(names) == 2 else None
        return plan or self.stay(names, opener)

    def some(self, present: Sequence[str]) -> list[str]:
        """One or two of those present, rather those a pronoun reaches, rather those not just seen."""
        groups = [(name,) for name in present] + list(combinations(present, 2))
        weights = []
        for group in groups:
            pronouns = ["they"] if len(group) == 2 else [member(group[0]).pronoun]
            clear = any(set(resolve(pronoun, self.past)) == set(group) for pronoun in pronouns)
            far = clear and distance(group, self.past) > 1
            hard = clear and competes(group, self.past)
            weights.append((2.2 if clear else 1.0) * (1.8 if far else 1.0) * (1.5 if hard else 1.0))
        return list(self.rng.choices(groups, weights)[0])

    def stay(self, names: Sequence[str], opener: str) -> _Plan:
        before = {actor.name: actor.action for actor in self.past[-1].actors}
        going_on = frozenset(name for name in names if before.get(name, "standing") != "standing")
        still = going_on if self.rng.random() < 0.08 else frozenset()
        return _Plan(self.place, self.act(names, still), "", "" if still else opener, still)

    def go(self, place: str, names: Sequence[str], opener: str, event: str = "go") -> _Plan:
        """Some of them, maybe all, are seen at `place` now."""
        action = "running" if self.rng.random() < 0.35 else "standing"
        actors = [Actor(name, action) for name in names]
        return _Plan(place, self.placed(actors), event, opener)

    def enter(self, name: str, present: Sequence[str], opener: str) -> _Plan:
        """Somebody comes: by joining a friend, or alone; who was seen before says that they come here."""
        seen = any(name in names_of(scene) for scene in self.past)
        choice = self.rng.random()
        if present and choice < (0.45 if seen else 0.35):
            friend = self.rng.choice(present)
            actors = [Actor(name, "standing"), Actor(friend, "standing")]
            return _Plan(self.place, self.placed(actors), "join", opener, newcomer=name)
        if seen:
            back = name in self.gone and self.location[name] == self.place
            return self.go(self.place, [name], opener, "return" if back else "come")
        if present and choice < 0.65:
            return _Plan(self.place, self.act([name, self.rng.choice(present)], frozenset()), opener=opener)
        return _Plan(self.place, self.act([name], frozenset()), opener=opener)

    def exchange(self, names: Sequence[str], opener: str) -> _Plan | None:
        """One of two gives the other what they held, or waves to them; None most of the time."""
        held = {
            actor.name: actor.prop for actor in self.past[-1].actors if actor.prop and actor.name in names
        }
        if len(held) == 1 and self.rng.random() < 0.4:
            giver, prop = next(iter(held.items()))
            taker = next(name for name in names if name != giver)
            actors = [Actor(giver, "standing"), Actor(taker, "standing", prop)]
            return _Plan(self.place, self.placed(actors), "give", opener)
        if self.rng.random() < 0.06:
            waving, idle = self.rng.sample(list(names), 2)
            actors = [Actor(waving, "waving"), Actor(idle, "standing")]
            return _Plan(self.place, self.placed(actors), "greet", opener)
        return None

    def act(self, names: Sequence[str], still: frozenset[str]) -> tuple[Actor, ...]:
        """Give everyone something to do, and some something to hold: often what was held a moment ago."""
        before = {actor.name: actor for actor in self.past[-1].actors} if self.past else {}
        held = [actor.prop for actor in before.values() if actor.prop]
        same = self.rng.choice(ACTIONS) if len(names) > 1 and self.rng.random() < 0.4 else None
        actors = []
        for name in names:
            if name in still:
                actors.append(Actor(name, before[name].action, before[name].prop))
                continue
            done = before[name].action if name in before else None
            action = same or self.rng.choice([action for action in ACTIONS if action != done])
            prop = None
            if self.rng.random() < (0.42 if len(names) == 1 else 0.28) and action != "sleeping":
                prop = held[0] if len(held) == 1 and self.rng.random() < 0.5 else self.rng.choice(PROPS)
            actors.append(Actor(name, action, prop))
        return self.placed(actors)

    def placed(self, actors: Sequence[Actor]) -> tuple[Actor, ...]:
        """Side by side in a random order."""
        shuffled = self.rng.sample(list(actors), len(actors))
        at = (self.position(),) if len(actors) == 1 else ("left", "right")
        return tuple(Actor(a.name, a.action, a.prop, p) for a, p in zip(shuffled, at, strict=True))

    def position(self) -> str:
        return self.rng.choice(("left", "middle", "middle", "right"))


def reference_statistics(stories: Iterable[ToonStory]) -> dict[str, Any]:
    """How hard the reference texts are over frames 2..F, and how many references a story holds on average.

    `nameless` is a share of frames, `competing` and `distant` (antecedent two or more frames back) shares of
    the nameless ones; `references_per_story` counts pronouns for characters, as the paper's table does.
    """
    total: Counter[str] = Counter()
    for story in stories:
        total["stories"] += 1
        for frame in story.frames[1:]:
            words = Counter(frame.reference.lower().replace(",", " ").replace(".", " ").split())
            pronouns = {
                word: words[word] for word in ("she", "her", "he", "him", "they", "them", "it", "there")
            }
            total.update({word: count for word, count in pronouns.items() if count})
            total["frames"] += 1
            if frame.nameless:
                total["nameless"] += 1
                total["competing"] += frame.competing
                total["distant"] += frame.antecedent_distance > 1
    people = sum(total[word] for word in ("she", "her", "he", "him", "they", "them"))
    return {
        "stories": total["stories"],
        "later_frames": total["frames"],
        "nameless": total["nameless"] / max(total["frames"], 1),
        "competing": total["competing"] / max(total["nameless"], 1),
        "distant": total["distant"] / max(total["nameless"], 1),
        "references_per_story": people / max(total["stories"], 1),
        "there_per_story": total["there"] / max(total["stories"], 1),
        "it_per_story": total["it"] / max(total["stories"], 1),
    }
