"""The errors, by what the user should do about them.

XgrayError              the base; never raised itself
├── InputError          wrong input or configuration: correct it and run again (exit code 2)
│   ├── ConflictError   the run's folder holds results of another configuration
│   └── DivergedError   the loss or a gradient of a training is no number
├── BusyError           another driver is at work in the run's folder; nothing was changed (exit code 1)
└── StageError          a stage failed; results so far are kept and the same command resumes (exit code 1)

A message says what happened, where (``file:line`` or ``section.field``) and what to do next.
"""

from __future__ import annotations


class XgrayError(Exception):
    """An error whose message is written for the user; the command line prints it without a traceback."""

    exit_code = 1


class InputError(XgrayError):
    """The input or the configuration is wrong; running again without a change would fail again."""

    exit_code = 2


class ConflictError(InputError):
    """The run's folder holds results of another configuration."""


class DivergedError(InputError):
    """The loss or a gradient of a training is no number; training again with the same fields ends in the same way."""


class BusyError(XgrayError):
    """Another driver is at work in the run's folder."""


class StageError(XgrayError):
    """A stage could not finish; the run can be resumed with the same command."""
