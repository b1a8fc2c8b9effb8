"""Where errors of other libraries end: what they raise becomes an error of this package."""

from __future__ import annotations

import functools
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nrm_graph.errors import InputError, NrmError, QueryError, StoreError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_PACKAGE = Path(__file__).parent
_KINDS: dict[str, type[NrmError]] = {"duckdb": QueryError, "pyarrow": StoreError}
"""Errors by the library that raised them; what torch or a network's own code raises is of what
was being done."""

_PHRASES = {
    r"`str` matching regex '\^\[\^.*": "text of valid Unicode",
    r"`str` matching regex '\^\[0-9a-f\]\{64\}.*": "64 hexadecimal digits",
    r"`str` matching regex '\^\((.*)\).*": r"one of \1",
    r"(?<=\w)\|(?=\w)": ", ",
    "matching regex": "matching",
    "Number out of range": "a number in range",
}
_TYPES = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "array": "a list",
    "object": "an object",
}


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


def out_of_memory(error: Exception, doing: str) -> NrmError | None:
    """Say that memory ran out, the host's or a device's; None where it did not."""
    reason = first_line(error)
    said = re.search("allocate|alloc_failed|out of memory", reason, re.IGNORECASE)
    if not (said or isinstance(error, MemoryError)):
        return None
    return NrmError(
        f"{doing} failed: there is not enough memory ({reason}); try a smaller batch_size, memory "
        "or resolution, or another device"
    )


def _translation(error: Exception, doing: str, kind: type[NrmError]) -> NrmError:
    full = out_of_memory(error, doing)
    if full is not None:
        return full
    reason = first_line(error)
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


class Misfit(ValueError):
    """Data from outside that is not of a type: where, what was expected and what was found."""

    def __init__(self, place: str, expected: str, found: object) -> None:
        super().__init__(f"expected {place} to be {expected}, found {repr(found)[:100]}")
        self.place, self.expected, self.found = place, expected, found


def typed(raw: Any, kind: type[T], place: str = "") -> T:
    """Value of a type, out of what :mod:`json` parsed, which stands at a place.

    Raises
    ------
    Misfit
        If it is of another form.

    Examples
    --------
    >>> typed([{}, {"n": 1}], list[dict[str, int]])
    [{}, {'n': 1}]
    >>> typed([1, "x"], list[int | None], "flags")
    Traceback (most recent call last):
    nrm_graph.foreign_errors.Misfit: expected flags[1] to be null or an integer, found 'x'
    """
    import msgspec  # light where no JSON is read

    try:
        return msgspec.convert(raw, kind)
    except UnicodeEncodeError as error:  # a lone surrogate, where no text is expected
        raise Misfit("all text", "valid Unicode", error.object) from None
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
    value: Any = raw
    steps: list[str | int] = []
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path):
        if index == "...":  # some value of a mapping: msgspec does not say of which key
            step = next((key for key in value if not _fits(raw, kind, steps, key)), None)
            if step is None:
                break
        else:
            step = name or int(index)
        steps.append(step)
        value = value[step]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    field = re.fullmatch("Object .* (required|unknown) field `(.*)`", said, re.DOTALL)
    if field:
        expected = "there" if field[1] == "required" else "absent"
        path, value = f"{path}.{field[2]}", value.get(field[2])
    else:
        expected = said.removeprefix("Expected ").partition(", got ")[0]
        for phrase, words in _PHRASES.items():
            expected = re.sub(phrase, words, expected)
        expected = re.sub("`(.*?)`", _types, expected)
    raise Misfit(f"{place}{path}".lstrip("."), expected, value)


def _fits(raw: Any, kind: Any, steps: Sequence[str | int], key: str) -> bool:
    """Whether data fits where the mapping at the end of some steps holds one key alone."""
    import msgspec

    def alone(value: Any, left: Sequence[str | int]) -> Any:
        if not left:
            return {key: value[key]}
        changed = value.copy()
        changed[left[0]] = alone(value[left[0]], left[1:])
        return changed

    try:
        msgspec.convert(alone(raw, steps), kind)
    except msgspec.ValidationError:
        return False
    return True


def _types(union: re.Match[str]) -> str:
    names = sorted(union[1].split(" | "), key="null".__ne__)
    return " or ".join(_TYPES.get(name, name) for name in names)
