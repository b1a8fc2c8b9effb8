"""Round floats to fewer bits, so that tables compress better; a choice, never the default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

_MANTISSA = 23  # bits of a float32


def check_bits(bits: object) -> None:
    """Refuse what is no number of mantissa bits.

    Raises
    ------
    InputError
        If it is neither None nor an integer from 1 to 22.
    """
    valid = isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits < _MANTISSA
    if bits is not None and not valid:
        raise InputError(f"mantissa_bits must be an integer from 1 to 22, found {bits!r}")


def round_mantissa(values: npt.NDArray[np.floating], bits: int) -> npt.NDArray[np.float32]:
    """Round to the nearest float32 of ``bits`` mantissa bits, ties to even.

    The largest relative error is ``2 ** -(bits + 1)``; what would overflow keeps its value.

    Examples
    --------
    >>> round_mantissa(np.array([1.0, 1.0004, -3.14159265]), 10)
    array([ 1.      ,  1.      , -3.140625], dtype=float32)
    """
    raw = np.ascontiguousarray(values, dtype=np.float32)
    drop = _MANTISSA - bits
    whole = raw.view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1) + ((whole >> np.uint32(drop)) & np.uint32(1))
    short = ((whole + half) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
    return np.where(np.isfinite(short), short, raw)


def rounded(edges: pa.Table, bits: int) -> pa.Table:
    """Edge table with relevance and conditional relevance rounded."""
    for name in ("relevance", "conditional"):
        place = edges.schema.get_field_index(name)
        column = edges.column(place)
        absent = column.is_null().to_numpy()
        values = round_mantissa(column.to_numpy(), bits)
        edges = edges.set_column(place, name, pa.array(values, mask=absent))
    return edges
