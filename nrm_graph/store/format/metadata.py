"""Metadata: the columns of ``inputs`` that a user adds, one type each across the store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError
from nrm_graph.store.format.schema import INPUTS, OWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

# "null" is a field that never held a value; its shard has no column for it.
ARROW_TYPES: Mapping[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
    "floats": pa.list_(pa.float64()),
}
SQL_TYPES: Mapping[str, str] = {
    "bool": "BOOLEAN",
    "int": "BIGINT",
    "float": "DOUBLE",
    "string": "VARCHAR",
    "strings": "VARCHAR[]",
    "floats": "DOUBLE[]",
    "null": "VARCHAR",
}
MAX_NAME = 200
MAX_TEXTS = 1 << 20  # in one list
MAX_FIELDS = 1000
RESERVED = frozenset(name.casefold() for name in INPUTS.names)
_EXACT = 1 << 53  # integers beyond it do not all fit a float column


def name_problem(name: object, reserved: Collection[str] = RESERVED) -> str | None:
    """Say why a field cannot bear a name, or None if it can.

    Parameters
    ----------
    name : object
        The name.
    reserved : collection of str
        Names of other columns, in lower case.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return f"a name must be text of 1 to {MAX_NAME} characters"
    if not name.isprintable() or name != name.strip():
        return "a name must be printable, without space at its ends"
    if name.casefold() in reserved:
        listed = ", ".join([*INPUTS.names, *(column for column in OWN if column in reserved)])
        return f"the names {listed} are reserved, letter case ignored"
    return None


Plain = bool | int | float | str | list[str] | list[float] | None


def normal(name: str, value: object) -> tuple[str, Plain]:
    """Type name and plain Python value of one metadata value.

    Scalars of NumPy and torch count as the Python values that they hold.

    Raises
    ------
    InputError
        If the value is no bool, int, float, str, list of str or of float, or None, or cannot be
        stored.
    """
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        values = list(value)
        if values and all(isinstance(number, float) for number in values):
            return "floats", [float(normal(name, number)[1]) for number in values]  # type: ignore[arg-type]
        return "strings", _texts(name, values)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InputError(f"the metadata {name!r} is {value}: expected at most 64 bits")
        return "int", int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"the metadata {name!r} is {value}: expected a finite number or None")
        return "float", float(value)
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"the metadata {name!r} is {value!r}: expected valid Unicode"
            ) from None
        return "string", str(value)
    raise InputError(
        f"the metadata {name!r} is a {type(value).__name__}: expected bool, int, float, str, a "
        "list of str or float, or None"
    )


def _texts(name: str, values: list[object]) -> list[str]:
    """List of texts, such as the tokens of an input."""
    if len(values) > MAX_TEXTS:
        raise InputError(
            f"the metadata {name!r} lists {len(values):,} texts: expected at most {MAX_TEXTS:,}"
        )
    texts = []
    for value in values:
        kind, text = normal(name, value) if not isinstance(value, list | tuple) else ("list", None)
        if kind != "string" or not isinstance(text, str):
            raise InputError(
                f"the metadata {name!r} is a list with a {type(value).__name__}: expected texts"
            )
        texts.append(text)
    return texts


def joined(first: str, second: str) -> str:
    """Type that readers give to a field that two shards hold with these types.

    >>> joined("int", "float"), joined("null", "bool"), joined("bool", "int")
    ('float', 'bool', 'string')
    """
    if first == second or second == "null":
        return first
    if first == "null":
        return second
    return "float" if {first, second} == {"int", "float"} else "string"


class Fields:
    """Types of the metadata fields seen so far, by name with letter case ignored."""

    def __init__(self, known: Iterable[Mapping[str, str]] = ()) -> None:
        self._names: dict[str, str] = {}
        self.types: dict[str, str] = {}
        for fields in known:
            for name, kind in fields.items():
                self._learn(name, kind)

    def _learn(self, name: str, kind: str) -> None:
        spelled = self._names.setdefault(name.casefold(), name)
        self.types[spelled] = joined(self.types.get(spelled, "null"), kind)

    def spelling(self, name: str) -> str | None:
        """Return the spelling under which a name is known, or None."""
        return self._names.get(name.casefold())

    def accept(
        self, metadata: Mapping[str, object], reserved: Collection[str] = RESERVED
    ) -> dict[str, Plain]:
        """Check the metadata of one input and fix the types of the fields that are new.

        Parameters
        ----------
        metadata : mapping
            Values by name.
        reserved : collection of str
            Names of other columns, in lower case.

        Raises
        ------
        InputError
            If a name or a type cannot be used; nothing is fixed then.
        """
        typed: dict[str, tuple[str, Plain]] = {}
        spellings: dict[str, str] = {}
        for name, raw in metadata.items():
            problem = name_problem(name, reserved)
            if problem:
                raise InputError(f"the metadata name {name!r} cannot be used: {problem}; rename it")
            other = spellings.setdefault(name.casefold(), self.spelling(name) or name)
            if other != name:
                raise InputError(
                    f"the metadata names {other!r} and {name!r} differ in letter case alone: use "
                    "one of them"
                )
            kind, value = normal(name, raw)
            fixed = self.types.get(name, "null")
            if "null" not in (kind, fixed) and kind != fixed and {kind, fixed} != {"int", "float"}:
                raise InputError(
                    f"the metadata {name!r} is of type {fixed} in this store, found {kind} "
                    f"({value!r}): convert it, or use another name"
                )
            if isinstance(value, int) and fixed == "float" and abs(value) > _EXACT:
                raise InputError(
                    f"the metadata {name!r} is of type float in this store, which cannot hold "
                    f"{value} exactly: use another name"
                )
            typed[name] = kind, value
        new = len({*self.types, *typed} - set(OWN))
        if new > MAX_FIELDS:
            raise InputError(f"expected at most {MAX_FIELDS} metadata fields, found {new}")
        for name, (kind, _) in typed.items():
            self._learn(name, kind)
        return {name: value for name, (_, value) in typed.items()}


def columns(rows: Sequence[Mapping[str, Plain]]) -> tuple[dict[str, str], dict[str, pa.Array]]:
    """Types by name, and the columns of those that hold a value, for the inputs of a shard."""
    fields = Fields()
    for row in rows:
        fields.accept(row)
    arrays = {}
    for name, kind in fields.types.items():
        if kind != "null":
            values = [row.get(name) for row in rows]
            if kind == "float":
                values = [float(v) if isinstance(v, int) else v for v in values]
            arrays[name] = pa.array(values, ARROW_TYPES[kind])
    return dict(fields.types), arrays
