"""Errors that a user can act on: one line that says what was found, what was expected and what to do.

The command line prints the line and exits with `exit_code`; anything that is not a `MaxlmError` is a fault of
the program and keeps its traceback.
"""

import sys
from typing import NoReturn


class MaxlmError(Exception):
    exit_code = 1
    prefix = "error: "
    everywhere = False  # with several processes: raised by all of them alike
    quiet = False  # with several processes: another one prints it

    def exit(self) -> NoReturn:
        """End the command with the message on stderr and the exit code."""
        if not self.quiet:
            print(f"{self.prefix}{self}", file=sys.stderr)
        sys.exit(self.exit_code)


class ConfigError(MaxlmError):
    """A key, a value or a combination of values that cannot work."""

    exit_code = 2


class DataError(MaxlmError):
    """A file or directory that is missing, truncated, altered or empty; the message names it."""

    exit_code = 3


class DivergedError(MaxlmError):
    """Training left the policy of the `faults` section."""

    exit_code = 4
    everywhere = True


class DoesNotFitError(MaxlmError):
    """A step needs more memory than its devices have."""

    exit_code = 5


class Preempted(MaxlmError):
    """A stop was asked for and the state is saved; a scheduler starts the same command again."""

    exit_code = 75
    prefix = ""  # as asked, so not called an error
    everywhere = True


class SaveError(MaxlmError):
    """A file could not be written; what was saved before is intact."""

    exit_code = 1


class StartError(MaxlmError):
    """The processes of a run did not come together."""

    exit_code = 1
