"""Every failure a user can cause, as one small tree; the command line prints them and exits with their code.

StoryVError                 1
├── ConfigError             2   an option, preset or setting is wrong
├── StoryError              2   the story cannot be read or drawn as written
├── OutputError             2   the place to write to is taken or not writable
├── MissingDependency       3   an optional package is not installed
├── BundleError             4   a bundle or checkpoint is missing, damaged or too new
├── BackendError            5   the device or provider asked for cannot run
├── BudgetError             6   the plan does not fit the memory given
├── ParityError             7   an exported component differs too much from its source
└── FrameError              8   a frame could not be drawn; the others are there, or can be
"""


class StoryVError(Exception):
    """A failure with one message (what was found, what is needed) and one hint (what to do)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(StoryVError):
    exit_code = 2


class StoryError(StoryVError):
    exit_code = 2


class OutputError(StoryVError):
    exit_code = 2


class MissingDependency(StoryVError):
    exit_code = 3


class BundleError(StoryVError):
    exit_code = 4


class BackendError(StoryVError):
    exit_code = 5


class BudgetError(StoryVError):
    exit_code = 6


class ParityError(StoryVError):
    exit_code = 7


class FrameError(StoryVError):
    exit_code = 8
