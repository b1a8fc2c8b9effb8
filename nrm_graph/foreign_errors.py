"""Where errors of other libraries end: what they raise becomes an error of this package."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nrm_graph.errors import InputError, NrmError, QueryError, StoreError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_PACKAGE = Path(__file__).parent
_KINDS: dict[str, type[NrmError]] = {"duckdb": QueryError, "pyarrow": StoreError}
"""Errors by the library that raised them; what torch or a network's own code raises is of what
was being done."""


def translated(doing: str, kind: type[NrmError] = InputError) -> Callable[[F], F]:
    """Decorate a public function so that it raises nothing but errors of this package.

    Parameters
    ----------
    doing : str
        What the function does, for messages: ``tracing``.
    kind : type
        Of errors that torch, or code of the user's, raises.

    Notes
    -----
    The original stays the cause.  Warnings that were turned into errors pass as they are.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (NrmError, Warning):
                raise
            except Exception as error:
                raise _translation(error, doing, kind) from error

        return cast("F", call)

    return decorate


def _translation(error: Exception, doing: str, kind: type[NrmError]) -> NrmError:
    reason = first_line(error)
    if isinstance(error, MemoryError) or "allocate" in reason or "out of memory" in reason.lower():
        return NrmError(
            f"{doing} failed: there is not enough memory ({reason}); try a smaller batch_size, "
            "memory or resolution"
        )
    library = type(error).__module__.partition(".")[0].lstrip("_")
    if library in _KINDS:
        return _KINDS[library](f"{doing} failed: {reason}")
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename)
    is_own = _PACKAGE in where.parents
    # Operations of torch leave no frame: they are RuntimeErrors, which this package never raises.
    if is_own and not isinstance(error, RuntimeError):
        return NrmError(
            f"{doing} failed inside nrm_graph, with {type(error).__name__}: {reason}, in "
            f"{where.relative_to(_PACKAGE)} line {frames[-1].lineno}; this is a defect of "
            "nrm_graph: please report it with the network and the traceback above"
        )
    place = (
        "" if is_own or "torch" in where.parts else f", in {where.name} line {frames[-1].lineno}"
    )
    return kind(f"{doing} failed, with {type(error).__name__}: {reason}{place}")
