"""`python -m storyv_lite` is the command `storyv-lite`."""

from storyv_lite.cli import app

app()
