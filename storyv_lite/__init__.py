"""storyv-lite draws stories: text in, a sequence of pictures with the same characters out."""

from storyv_lite.errors import StoryVError
from storyv_lite.story import Caption, Story, read_story

__all__ = ["Caption", "Story", "StoryVError", "read_story"]

__version__ = "0.1.0"
