"""Every error that this package raises on purpose, under one root.

A message says what was expected, what was found and what to do.  The command line
turns any :class:`NrmError` into one line and the exit code of its class; any other
exception is a bug.
"""


class NrmError(Exception):
    """Root of all errors of this package.

    ``exit_code`` is what the command line exits with.
    """

    exit_code = 1


class InputError(NrmError):
    """An argument or an input tensor is not what was expected (shape, type, NaN, target)."""

    exit_code = 3


class WeightsNeeded(InputError):
    """A store names weights of its network that it does not hold, and none were given."""


class TraceError(NrmError):
    """The model cannot be traced, or holds an operation that is not known."""

    exit_code = 4


class CompositeError(NrmError):
    """A composite is unknown or does not fit the network."""

    exit_code = 4


class EventError(NrmError):
    """A neuron set or event does not fit the network, or an expression cannot be parsed."""

    exit_code = 5


class UndefinedConditional(NrmError):
    """R(A given B) where R(B) is below rounding: the quotient is undefined."""

    exit_code = 5


class StoreError(NrmError):
    """A store is missing, damaged, of an unknown format, or in conflict with what is asked."""

    exit_code = 6


class NotRegistered(StoreError):
    """A store names a rule or operation of one's own that this process has not registered."""


class QueryError(NrmError):
    """A SQL query was refused or failed."""

    exit_code = 7


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:;, ")
