"""The drawn world: everything can be drawn, masks are exact, the same scene gives the same bytes."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from storyv_lite.errors import StoryVError
from storyv_lite.train.toonworld.cast import CAST, HELD_OUT, member
from storyv_lite.train.toonworld.draw import portrait, render
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, POSITIONS, PROPS, Actor, Scene

EVERYONE = [each.name for each in CAST + HELD_OUT]
CROWD = Scene(
    "forest",
    (
        Actor("rex", "sleeping", "cake", "left"),
        Actor("kiki", "running"),
        Actor("bruno", "jumping", "ball", "right"),
    ),
    5,
)


@pytest.mark.parametrize("name", EVERYONE)
def test_everyone_can_do_everything_with_everything(name: str) -> None:
    for seed, action in enumerate(ACTIONS):
        for prop in (None, *PROPS):
            picture = render(Scene(PLACES[seed], (Actor(name, action, prop, POSITIONS[seed % 3]),), seed))
            (x0, y0, x1, y1) = picture.boxes[0]
            assert picture.image.shape == (256, 256, 3)
            assert (picture.masks[0] > 127).sum() > 4000
            assert 0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 256


@pytest.mark.parametrize(("position", "side"), [("left", 1), ("middle", 1), ("right", -1)])
def test_where_somebody_stands_decides_to_which_side_a_thing_is_held(position: str, side: int) -> None:
    for seed in range(12):
        actors = (Actor("rex", "standing", "balloon", position),)
        red = render(Scene("snow", actors, seed)).image.astype(int) @ (1, -1, 0) > 100  # nothing else is
        columns = np.flatnonzero(render(Scene("snow", actors, seed)).masks[0].max(0) > 127)
        assert (np.nonzero(red)[1].mean() - columns.mean()) * side > 0, seed


@pytest.mark.parametrize("prop", PROPS)
def test_a_held_thing_is_large_enough_for_the_latent_grid(prop: str) -> None:
    bare = render(Scene("beach", (Actor("luna", "sitting"),), 3)).image.astype(int)
    held = render(Scene("beach", (Actor("luna", "sitting", prop),), 3)).image.astype(int)
    assert (np.abs(bare - held).max(axis=2) > 24).sum() > 26 * 26


def test_masks_share_each_pixel_among_the_actors() -> None:
    picture = render(CROWD)
    assert picture.masks.shape == (3, 256, 256)
    assert picture.masks.astype(int).sum(axis=0).max() <= 255


def test_pixels_outside_every_mask_do_not_depend_on_who_is_drawn() -> None:
    milo = render(Scene("town", (Actor("milo", "sitting"),), 8))
    zara = render(Scene("town", (Actor("zara", "sitting"),), 8))
    outside = (milo.masks[0] == 0) & (zara.masks[0] == 0)
    assert outside.mean() > 0.5
    assert np.array_equal(milo.image[outside], zara.image[outside])


def test_pixels_inside_a_mask_do_not_depend_on_the_place() -> None:
    first = render(Scene("snow", CROWD.actors, 5))
    second = render(Scene("hill", CROWD.actors, 5))
    assert np.array_equal(first.masks, second.masks)
    covered = first.masks.astype(int).sum(axis=0) == 255
    assert covered.any()
    assert np.array_equal(first.image[covered], second.image[covered])
    assert not np.array_equal(first.image, second.image)


@pytest.mark.parametrize("seed", range(6))
def test_no_actor_hides_another(seed: int) -> None:
    actors = tuple(
        Actor(EVERYONE[(seed + k * 3) % 12], ACTIONS[(seed + k) % 6], PROPS[(seed * 2 + k) % 6], POSITIONS[k])
        for k in range(3)
    )
    picture = render(Scene(PLACES[seed], actors, seed))
    for index, actor in enumerate(actors):
        alone = Scene(PLACES[seed], tuple(a for a in actors if a is actor), seed)
        whole = (render(alone).masks[0] > 127).sum() * (0.84 / 1.12) ** 2
        assert (picture.masks[index] > 127).sum() > 0.45 * whole


@pytest.mark.parametrize("seed", range(4))
def test_actors_stand_where_the_scene_says(seed: int) -> None:
    for first, second in (("left", "middle"), ("left", "right"), ("middle", "right")):
        pair = (Actor("otto", ACTIONS[seed], None, first), Actor("olive", "standing", "book", second))
        left, right = render(Scene("kitchen", pair, seed)).boxes
        assert left[0] + left[2] + 60 < right[0] + right[2]


def test_the_same_scene_gives_the_same_bytes_at_any_time() -> None:
    first = render(CROWD)
    render(Scene("beach", (Actor("pip", "waving"),), 1))
    again = render(CROWD)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.masks.tobytes() == again.masks.tobytes()


@pytest.mark.parametrize(
    ("place", "checksum"),
    [
        ("meadow", "789092327ec9f30e"),
        ("bedroom", "2334a04b3e5f6e34"),
        ("hill", "6581ae45b686b100"),
    ],
)
def test_frames_are_the_ones_the_model_was_trained_on(place: str, checksum: str) -> None:
    scene = Scene(
        place, (Actor("milo", "running", "balloon", "left"), Actor("kiki", "sitting", None, "right")), 11
    )
    picture = render(scene)
    assert hashlib.sha256(picture.image.tobytes() + picture.masks.tobytes()).hexdigest()[:16] == checksum


def test_a_place_varies_with_the_seed() -> None:
    for place in PLACES:
        frames = {
            render(Scene(place, (Actor("milo", "standing"),), seed)).image.tobytes() for seed in range(4)
        }
        assert len(frames) == 4


def test_portraits_differ_and_fill_the_picture() -> None:
    portraits = {name: portrait(name).astype(int) for name in EVERYONE}
    for name, image in portraits.items():
        drawn = np.argwhere((image < 250).any(axis=2))
        assert np.ptp(drawn, axis=0).max() > 220, name
        assert np.abs((drawn.min(axis=0) + drawn.max(axis=0)) / 2 - 127.5).max() < 6, name
    for one, other in combinations(EVERYONE, 2):
        assert np.abs(portraits[one] - portraits[other]).mean() > 8, (one, other)


def test_a_smaller_picture_shows_the_same_scene() -> None:
    large, small = render(CROWD), render(CROWD, 128)
    halved = large.image.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert small.masks.shape == (3, 128, 128)
    assert np.abs(halved - small.image).mean() < 5


def test_the_cast_has_four_of_each_and_new_faces_of_every_pronoun() -> None:
    assert sorted(each.pronoun for each in CAST) == ["he"] * 4 + ["she"] * 4
    assert sorted(each.pronoun for each in HELD_OUT) == ["he", "she", "she", "they"]
    assert len({each.kind for each in CAST + HELD_OUT}) == 12


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(StoryVError, match="`nobody`.*milo"):
        member("nobody")
