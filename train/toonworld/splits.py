"""Which seeds belong to training, validation and test: ranges of numbers that cannot overlap. Draws nothing.

A story's seed and the seeds of its scenes all lie in the range of its split, so no test story and no test
picture can be met in training, whatever seed a run was given.
"""

import random

from storyv_lite.errors import ConfigError

SPLITS = {
    "train": range(2**30),
    "validation": range(2**30, 2**30 + 2**29),
    "test": range(2**30 + 2**29, 2**31),
}
GOLDEN_SEED = 20240624  # of the fixed test set every result is printed for


def seeds(split: str) -> range:
    """The seeds of `split`. Raises ConfigError for a name that is none."""
    if split not in SPLITS:
        raise ConfigError(f"`{split}` is no split of the cartoon world", f"take one of {', '.join(SPLITS)}")
    return SPLITS[split]


def story_seed(split: str, seed: int, index: int) -> int:
    """The seed of story `index` of a set drawn with `seed`, always inside the range of `split`."""
    allowed = seeds(split)
    return random.Random(f"{split}/{seed}/{index}").randrange(allowed.start, allowed.stop)


def inside(split: str, seed: int) -> int:
    """`seed` itself where it lies in the range of `split`, else the one it is folded onto."""
    allowed = seeds(split)
    return seed if seed in allowed else allowed.start + seed % len(allowed)


def split_of(seed: int) -> str:
    """The split whose range holds `seed`. Raises ConfigError for a seed of no split."""
    for split, allowed in SPLITS.items():
        if seed in allowed:
            return split
    raise ConfigError(f"seed {seed} lies in no split", f"take one from 0 to {SPLITS['test'].stop - 1}")


def golden_seeds(count: int = 100) -> tuple[int, ...]:
    """The seeds of the golden test set: the same stories for every model, ever."""
    return tuple(story_seed("test", GOLDEN_SEED, index) for index in range(count))
