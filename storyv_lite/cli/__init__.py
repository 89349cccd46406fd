"""The command `storyv-lite`: one file per command, each imports its work inside, so `--help` is instant."""

from storyv_lite.cli.main import app

__all__ = ["app"]
