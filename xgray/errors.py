"""What can go wrong, by what the user should do about it.

XgrayError              the base; never raised itself
├── InputError          wrong input or configuration: mend it and call again (exit code 2)
│   └── ConflictError   the run directory holds results of another configuration
├── BusyError           another driver is at work in the run directory; nothing was touched (exit code 1)
└── StageError          a stage failed half-way: what is done stays, the same command resumes (exit code 1)

A message says what happened, where (``file:line`` or ``section.field``) and what to do next.
"""

from __future__ import annotations


class XgrayError(Exception):
    """An error whose message is written for the user; the command line prints it without a traceback."""

    exit_code = 1


class InputError(XgrayError):
    """The input or the configuration is wrong, and running again without a change would fail again."""

    exit_code = 2


class ConflictError(InputError):
    """The run directory holds results of another configuration."""


class BusyError(XgrayError):
    """Another driver is at work in the run directory."""


class StageError(XgrayError):
    """A stage could not finish; the run can be resumed with the same command."""
