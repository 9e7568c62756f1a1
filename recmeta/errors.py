"""The errors that recmeta raises on purpose, and the exit code that each one gives.

    RecmetaError                     1
    ├── InputError                   2   a file, row, argument or name that cannot be used
    │   ├── SchemaError                  a missing or wrongly typed column, an unreadable file
    │   ├── ContextError                 contexts.yaml or a context's name
    │   ├── IntervalError                an interval that ends before it starts, or in the future
    │   ├── DeviceError                  an accelerator is asked for that torch does not see
    │   └── QuarantineError              more bad rows than the settings allow
    ├── NotFoundError                4   no such bundle, context or file
    ├── IntegrityError               5   bytes that do not match their checksum
    └── BusyError                   75   another run holds the workspace (EX_TEMPFAIL: try again)

Exit code 0 is success. Exit code 3 is not an error: a night ended, its gates refused
everything, and there is no earlier champion, so that nothing serves.

This module must never import another room.
"""

from __future__ import annotations


class RecmetaError(Exception):
    """A failure that recmeta foresaw. Its text says what was expected, what came, and where."""

    exit_code = 1


class InputError(RecmetaError):
    """Input that cannot be used as it is."""

    exit_code = 2


class SchemaError(InputError):
    """A file or a table whose columns or types are not the expected ones."""


class ContextError(InputError):
    """A context's name or its declaration cannot be used."""


class IntervalError(InputError):
    """A time interval that cannot be processed."""


class DeviceError(InputError):
    """The accelerator that the settings ask for is not there."""


class QuarantineError(InputError):
    """The share of refused rows is above the set limit, so nothing of the file was taken."""


class NotFoundError(RecmetaError):
    """What was asked for does not exist."""

    exit_code = 4


class IntegrityError(RecmetaError):
    """A file's bytes are not those that its manifest promised."""

    exit_code = 5


class BusyError(RecmetaError):
    """Another run holds what this one needs."""

    exit_code = 75
