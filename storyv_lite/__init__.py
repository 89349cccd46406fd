"""storyv-lite draws stories: text in, a sequence of pictures with the same characters out."""

__version__ = "0.1.0"
