"""Tables of a shard: Arrow schemas, records, identities and Parquet options."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.network.weighted_targets import Aim

FORMAT_VERSION = 1
EXTENDED_VERSION = 2
"""Of ``store.json`` where edges of an input are bounded, or weights are named and not held: what a
reader of version 1 would misunderstand, see :mod:`nrm_graph.store`."""
WEIGHTED_VERSION = 2
"""Of manifests of shards that hold weighted targets, whose pairs format 1 has no form for."""

TABLES = ("inputs", "nodes", "edges", "tensors")

INPUTS = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("target", pa.int32()),  # null of weights
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)
OWN: Mapping[str, str] = {
    "item": "int",
    "weights": "string",
    "flags": "strings",
    "kept": "float",
    "thresholds": "floats",
}
"""Columns of ``inputs`` that a shard holds as metadata, with their types.

Stores of before may hold a user's own field of such a name, which then keeps it.
"""

NODES = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("layer_id", pa.int16(), nullable=False),
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),
        pa.field("activation", pa.float32()),
    ]
)
EDGES = pa.schema(
    [
        pa.field("input_id", pa.int64(), nullable=False),
        pa.field("dst_layer", pa.int16(), nullable=False),
        pa.field("dst_unit", pa.int32(), nullable=False),
        pa.field("src_layer", pa.int16(), nullable=False),
        pa.field("src_unit", pa.int32(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),
        pa.field("conditional", pa.float32()),
    ]
)
# large_binary: an input, or the inputs of one shard together, may pass 2 GiB.
TENSORS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)
# Of networks of several inputs: a row for each, in their order.
NAMED_TENSORS = TENSORS.append(pa.field("name", pa.string(), nullable=False))
LAYERS = pa.schema(
    [
        ("layer_id", pa.int16()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("resolution", pa.string()),
        ("n_units", pa.int32()),
        ("depth", pa.int16()),
    ]
)
FAILURES = pa.schema([("key", pa.string()), ("error", pa.string())])
SCHEMAS: Mapping[str, pa.Schema] = {
    "inputs": INPUTS,
    "nodes": NODES,
    "edges": EDGES,
    "tensors": TENSORS,
}

# Sort keys within one input; each is unique there.
ORDER: Mapping[str, tuple[str, ...]] = {
    "nodes": ("layer_id", "unit"),
    "edges": ("dst_layer", "src_layer", "dst_unit", "src_unit"),
}

VIEWS = ("inputs", "layers", "nodes", "edges", "flows", "units", "thresholds", "failures")
"""Tables that SQL sees in every store."""

CONDITION_FACTS: Mapping[str, str] = {
    "relevance": "float",
    "error": "float",
    "amplification": "float",
    "absorbed": "float",
    "status": "string",
    "reason": "string",
}
"""Metadata of the shards of a condition, with their types."""

ROWS_PER_GROUP = 1 << 20
GROUPS_PER_FILE = 200

MAX_TENSORS = 1000
"""Inputs that a network may have."""

TENSOR_DTYPES = frozenset(
    {
        *(f"float{bits}" for bits in (16, 32, 64)),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        "bool",
    }
)


def ascents(
    keys: Sequence[npt.NDArray[np.integer]],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Compare each row but the first with that before: whether it is greater, and whether equal.

    Examples
    --------
    >>> later, equal = ascents([np.array([0, 0, 1, 1]), np.array([2, 3, 0, 0])])
    >>> later.tolist(), equal.tolist()
    ([True, True, False], [False, False, True])
    """
    later = np.zeros(max(0, len(keys[0]) - 1), bool)
    equal = np.ones_like(later)
    for key in keys:
        later |= equal & (key[1:] > key[:-1])
        equal &= key[1:] == key[:-1]
    return later, equal


@dataclass(frozen=True)
class Record:
    """Everything that a store keeps about one (key, target) pair.

    Attributes
    ----------
    key : str
        Name of the input; one key has one content.
    target : int or None
        Index of the explained output; None where ``weights`` say what is explained.
    label : str or None
        True label of the input, if known.
    predicted : int
        Index of the strongest output.
    logit : float
        Value of the explained output.
    metadata : mapping of str to bool, int, float, str or None
        Further columns of the table ``inputs``.
    content : str
        ``content_of`` the input.
    tensor : ndarray, mapping of str to ndarray, or None
        The input, or several by their names, in order; None to leave it out of the store.
    nodes : pyarrow.Table
        Columns layer_id, unit, relevance, activation.
    edges : pyarrow.Table
        Columns dst_layer, dst_unit, src_layer, src_unit, relevance, conditional.
    item : int or None
        Place in the data set, counted through all calls of an extraction; None if not known.
    weights : str or None
        Weights of the explained outputs, as :mod:`nrm_graph.network.weighted_targets` writes them.
    flags : tuple of str or None
        Names of what a reader must know, see :mod:`nrm_graph.propagation.flags`; None if not known.
    kept : float or None
        Share of its sum of |relevance| that the rows of every pair of layers hold at least; None if
        not known.
    thresholds : tuple of float or None
        For every pair of layers, in the order of the store's groups, what |relevance| of no edge
        that is left out exceeds, 0 where none is; None where all are there, or not known.
    """

    key: str
    target: int | None
    label: str | None
    predicted: int
    logit: float
    metadata: Mapping[str, Any]
    content: str
    tensor: npt.NDArray[np.generic] | Mapping[str, npt.NDArray[np.generic]] | None
    nodes: pa.Table
    edges: pa.Table
    item: int | None = None
    weights: str | None = None
    flags: tuple[str, ...] | None = None
    kept: float | None = None
    thresholds: tuple[float, ...] | None = None

    @property
    def tensors(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Arrays by name; a lone input has none, ``""``."""
        if self.tensor is None:
            return {}
        return self.tensor if isinstance(self.tensor, dict) else {"": self.tensor}  # type: ignore[dict-item]


def aim_of(target: int | None, weights: str | None) -> Aim:
    """Return what a pair explains: its target, or the text of its weights.

    Raises
    ------
    InputError
        If both are there, or neither.
    """
    if target is None and weights is not None:
        return weights
    if target is None or weights is not None:
        raise InputError(
            f"expected a target or weights, found the target {target!r} and the weights {weights!r}"
        )
    return target


def input_id(key: str, target: Aim) -> int:
    """Identity of a (key, target) pair: 63 bits of a SHA-256, never negative.

    The hash is over the UTF-8 bytes of ``<n>:<key>:<target>`` with n the key's length in bytes,
    so that no two pairs join to the same bytes, and the text of its weights as a weighted target;
    its first 8 bytes, big-endian, lose their lowest bit to fit a signed 64-bit column.

    Raises
    ------
    InputError
        If the key is not valid Unicode (a file name with undecodable bytes).

    Examples
    --------
    >>> input_id("cat.png", 3)
    6170490723656772865
    """
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected a key of valid Unicode, found {key!r}: rename the file or give a key"
        ) from error
    text = b"%d:%s:%s" % (len(encoded), encoded, str(target).encode())
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def tensor_bytes(tensor: npt.NDArray[np.generic]) -> bytes:
    """Bytes of an array in C order, little-endian.

    Raises
    ------
    InputError
        If the array's type is none of float, int, uint (8 to 64 bits) and bool.
    """
    if tensor.dtype.name not in TENSOR_DTYPES:
        raise InputError(
            f"expected an input of type {', '.join(sorted(TENSOR_DTYPES))}, "
            f"found {tensor.dtype.name}: convert it"
        )
    return np.asarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes(order="C")


def content_hash(tensor: npt.NDArray[np.generic]) -> str:
    """SHA-256 of an array's type, shape and bytes, in hexadecimal digits.

    Raises
    ------
    InputError
        If the array's type cannot be stored.

    Examples
    --------
    >>> content_hash(np.zeros(2, np.float32)) == content_hash(np.zeros((2, 1), np.float32))
    False
    """
    shape = ",".join(map(str, tensor.shape))
    head = f"{tensor.dtype.name}|{shape}|".encode()
    return hashlib.sha256(head + tensor_bytes(tensor)).hexdigest()


def content_of(tensors: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Content of an input: that of its tensor, or of several with their names.

    Examples
    --------
    >>> one = np.zeros(2, np.float32)
    >>> content_of({"x": one}) == content_hash(one)
    True
    """
    return joined_content(list(tensors), [content_hash(tensor) for tensor in tensors.values()])


def joined_content(names: Sequence[str], hashes: Sequence[str]) -> str:
    """Content of an input from the contents of its tensors."""
    if len(hashes) == 1:
        return hashes[0]
    text = "".join(f"{name}:{content};" for name, content in zip(names, hashes, strict=True))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


_WRITER_OPTIONS = frozenset(inspect.signature(pq.write_table).parameters)
"""Options that this pyarrow knows: older ones count no rows of a page."""


def parquet_options(table: str) -> dict[str, Any]:
    """Options of ``pyarrow.parquet.ParquetWriter`` for one table of a shard.

    Notes
    -----
    Measured on 20 million edges: the default dictionary alone costs 5.9 bytes per value, pages of
    20,000 rows (the default) cost 5 %.
    """
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
    }
    if "max_rows_per_page" in _WRITER_OPTIONS:
        options["max_rows_per_page"] = 131_072
    if table in ORDER:
        options["column_encoding"] = {
            field.name: "BYTE_STREAM_SPLIT"
            if pa.types.is_floating(field.type)
            else "DELTA_BINARY_PACKED"
            for field in SCHEMAS[table]
        }
    return options
