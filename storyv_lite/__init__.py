"""storyv-lite draws stories: text in, a sequence of pictures with the same characters out."""

from storyv_lite.errors import StoryVError
from storyv_lite.optional import drop_notices
from storyv_lite.story import Caption, Story, read_story

__all__ = ["Caption", "Story", "StoryVError", "read_story"]

__version__ = "0.1.0"

drop_notices()  # here, before anything of ours can import the library that gives it
