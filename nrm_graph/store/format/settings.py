"""``store.json`` and the files of the program: made once, read without trust."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import safetensors.numpy
from msgspec import UNSET, Meta, Struct, UnsetType

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network.topology import LayerInfo
from nrm_graph.store.format.files import (
    create_once,
    file_size,
    parse_object,
    read_limited,
    seal,
    sha256_of,
)
from nrm_graph.store.format.json_file import Count, JsonFile, Sha256, Text
from nrm_graph.store.format.place import refuse_foreign
from nrm_graph.store.format.schema import EXTENDED_VERSION, FORMAT_VERSION, MAX_TENSORS
from nrm_graph.store.format.tensor_file import tensor_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from _typeshed import ReadableBuffer

MAX_SETTINGS_BYTES = 64 << 20
MAX_PROGRAM_BYTES = 256 << 20
MAX_HEADER_BYTES = 64 << 20
KEPT_OPTIONS = (
    "composite",
    "coverage",
    "top",
    "max_edges",
    "mantissa_bits",
    "classes",
    "preprocessing",
)
"""Options of an extraction that hold for all inputs of a store."""
PROGRAM_FILES = ("program.json", "weights.safetensors")
UNITS_FILE = "units.safetensors"

Int15 = Annotated[int, Meta(ge=0, le=(1 << 15) - 1)]
Int31 = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Name = Annotated[Text, Meta(min_length=1)]
Resolution = Annotated[str, Meta(pattern=r"^(neuron|channel|feature|token|head|custom)\Z")]
Tensors = Meta(min_length=1, max_length=MAX_TENSORS)


class _Layer(Struct):
    layer_id: Int15
    name: Name
    kind: Text
    shape: list[Int31]
    resolution: Resolution
    n_units: Int31
    depth: Int15
    aliases: list[Text]


class _Output(Struct, forbid_unknown_fields=True):
    name: Name
    shape: list[Int31]


class _Input(_Output, forbid_unknown_fields=True):
    dtype: Annotated[str, Meta(pattern=r"^(float|int64|bool)\Z")]


class _File(Struct):
    size: Count
    sha256: Sha256


class _Named(Struct, forbid_unknown_fields=True):
    name: Text
    dtype: Annotated[str, Meta(pattern=r"^(F64|F32|I64|I32|I16|I8|U8|BOOL)\Z")]
    shape: list[Count]
    sha256: Sha256


class _Language(Struct, forbid_unknown_fields=True):
    head: Annotated[str, Meta(pattern=r"^(causal|masked|classification)\Z")]
    family: Text
    model: Text
    length: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class _Settings(Struct):
    program_hash: Sha256
    composite: dict[str, Any]
    versions: dict[str, Any]
    coverage: Annotated[float, Meta(gt=0, le=1)]
    layers: Annotated[list[_Layer], Meta(min_length=1, max_length=1 << 15)]
    groups: list[tuple[Count, Count, Count]]
    files: dict[str, _File]
    top: Annotated[int, Meta(ge=1, le=1 << 62)] | None = None
    max_edges: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    mantissa_bits: Annotated[int, Meta(ge=1, le=23)] | None = None
    preprocessing: Text | None = None
    classes: list[Text] | None = None
    named: dict[str, _Named] | UnsetType = UNSET
    inputs: Annotated[list[_Input], Tensors] | UnsetType = UNSET
    outputs: Annotated[list[_Output], Tensors] | UnsetType = UNSET
    language: _Language | UnsetType = UNSET


def create(
    path: Path,
    settings: Mapping[str, Any],
    program: str,
    weights: Mapping[str, npt.NDArray[np.generic]],
    units: Mapping[str, npt.NDArray[np.generic]],
) -> None:
    """Make a store, or check that the one that is there has the same settings.

    Several processes may do so at once: one makes each file, the others compare.

    Parameters
    ----------
    path : Path
        Folder of the store.
    settings : mapping
        What goes to ``store.json``; ``format_version`` and ``files`` are added here.
    program : str
        Text of ``program.json``.
    weights, units : mapping of str to ndarray
        Tensors of the program, and custom partitions by layer name.

    Raises
    ------
    InputError
        If the settings are not as the format says.
    StoreError
        If a store is there that was made otherwise (the message names the difference), if the
        folder holds something else, or if it cannot be written.
    """
    if (path / "store.json").exists():
        check_same(read_settings(path), settings)
        return
    files: dict[str, Sequence[ReadableBuffer]] = {
        "program.json": [program.encode("utf-8")],
        "weights.safetensors": tensor_file(weights),
    }
    if units:
        files[UNITS_FILE] = tensor_file(units)
    described = {name: described_file(parts) for name, parts in files.items()}
    extended = settings.get("max_edges") is not None or "named" in settings
    version = EXTENDED_VERSION if extended else FORMAT_VERSION
    full = {"format_version": version, **settings, "files": described}
    try:
        full["seal"] = seal(json.loads(json.dumps(full, allow_nan=False)))  # keys as text
        text = json.dumps(full, indent=1, sort_keys=True, allow_nan=False).encode("utf-8")
        _decode(path, text)  # what could not be read again is never written
    except (TypeError, ValueError, StoreError) as error:
        reason = str(error).split("; ")[0]  # without the advice for stores of others
        raise InputError(f"these settings cannot be stored: {reason}") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        refuse_foreign(path)
        (path / "shards").mkdir(exist_ok=True)
        for name, parts in files.items():
            if not create_once(path / name, *parts):
                _check_left(path, name, described[name])
        is_ours = create_once(path / "store.json", text)
    except OSError as error:
        raise StoreError(
            f"cannot make a store at {path}: {error.strerror or error}; free space or permissions "
            "and run the same command again"
        ) from error
    if not is_ours:
        check_same(read_settings(path), settings)


def described_file(parts: Sequence[ReadableBuffer]) -> dict[str, object]:
    """Size and SHA-256 of a file that is written in parts."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += memoryview(part).nbytes
    return {"size": size, "sha256": digest.hexdigest()}


def holds(file: Path, described: Mapping[str, object]) -> bool:
    """Whether a file that is there has the size and the SHA-256 of another."""
    return file_size(file) == described["size"] and sha256_of(file) == described["sha256"]


def _check_left(path: Path, name: str, described: Mapping[str, object]) -> None:
    """Accept a file that another process, or an attempt that was cut off, has made alike."""
    file = path / name
    if not holds(file, described):
        raise StoreError(
            f"{file} is there already, of another program or partition: another process "
            "makes a store here with other settings, or an attempt was cut off; choose another "
            "folder, or remove this one"
        )


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a store with other settings.

    Raises
    ------
    StoreError
        Naming the first difference, with the store's value and the new one in short.
    """
    check_program(stored, wanted["program_hash"])
    for name in KEPT_OPTIONS:
        values = (meta.get(name) for meta in (stored, wanted))
        # Without a number all edges are kept, or what coverage and top say.
        _compare(name, *("all" if name == "max_edges" and v is None else v for v in values))
    kinds = ["named" if "named" in meta else "copy" for meta in (stored, wanted)]
    _compare("choice of weights", *kinds)
    ours, theirs = wanted["layers"], stored["layers"]
    _compare("layers", [row["name"] for row in theirs], [row["name"] for row in ours])
    for old, new in zip(theirs, ours, strict=True):
        for name in ("resolution", "units", "n_units", "shape", "kind", "depth", "aliases"):
            words = "partition" if name == "units" else name
            _compare(f"{words} of layer {new['name']}", old.get(name), new.get(name))
    _compare("groups", stored["groups"], wanted["groups"])
    for name in ("inputs", "outputs"):
        _compare(name, stored.get(name), wanted.get(name))


def check_program(stored: Mapping[str, Any], program_hash: str) -> None:
    """Refuse to continue a store with another program.

    Raises
    ------
    StoreError
        If it is another.
    """
    _compare("program", stored["program_hash"], program_hash)


def _compare(words: str, old: object, new: object) -> None:
    # Compared as JSON: a tuple is a list there, and 1 is not 1.0 is not true.
    before, after = (json.dumps(v, sort_keys=True, default=list) for v in (old, new))
    if before != after:
        start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        start = max(0, start - 30) if max(len(before), len(after)) > 80 else 0
        short = [("..." if start else "") + t[start : start + 77] for t in (before, after)]
        raise StoreError(
            f"the store was made with another {words}: it has {short[0]}, asked for is {short[1]}; "
            "use the same model and settings, or another folder"
        )


def read_settings(path: Path, *, sizes: bool = True) -> dict[str, Any]:
    """Read ``store.json``; nothing in it is trusted.

    Parameters
    ----------
    path : Path
        The store's folder.
    sizes : bool
        Whether to check the sizes of the program's files.

    Raises
    ------
    StoreError
        If there is no store, its version is unknown, or a file or field is not as it must be.
    """
    if not path.is_dir():
        raise StoreError(f"there is no store at {path}: expected a folder made by extract")
    if not (path / "store.json").exists():
        raise StoreError(
            f"{path} is not a store: it has no store.json (an extraction that was cut off before "
            "its first result leaves such a folder; run it again)"
        )
    settings = _decode(path, read_limited(path / "store.json", MAX_SETTINGS_BYTES))
    for name, info in settings["files"].items() if sizes else ():
        size = file_size(path / name)
        if size != info["size"]:
            raise StoreError(
                f"expected {path / name} to hold {info['size']} bytes, found {size}; the file was "
                "truncated or changed: copy the store again"
            )
    return settings


def _decode(path: Path, data: bytes) -> dict[str, Any]:
    file = JsonFile(str(path / "store.json"))
    raw = parse_object(data, file.name)
    version = file.version(raw, FORMAT_VERSION, EXTENDED_VERSION)
    settings = file.typed(raw, _Settings)
    extended = settings.max_edges is not None or settings.named is not UNSET
    expected = EXTENDED_VERSION if extended else FORMAT_VERSION
    words = f"{expected}, with{'' if extended else 'out'} a number as max_edges or named weights"
    file.expect(version == expected, "format_version", words, version)
    layers = settings.layers
    for place, layer in enumerate(layers):
        file.expect(
            layer.layer_id == place, f"layers[{place}].layer_id", f"{place}", layer.layer_id
        )
        neurons, units = math.prod(layer.shape), layer.n_units
        file.expect(
            units <= neurons, f"layers[{place}].n_units", "at most one for each neuron", units
        )
    for place, group in enumerate(settings.groups):
        backwards = group[1] < group[0] < len(layers)
        file.expect(backwards, f"groups[{place}]", "[dst, src, dense edges] of layers", group)
    for field, rows in (
        ("layers", layers),
        ("inputs", settings.inputs or ()),
        ("outputs", settings.outputs or ()),
    ):
        names = [row.name for row in rows]
        file.expect(len(set(names)) == len(names), f"the names of {field}", "unique", sorted(names))
    if settings.outputs:
        neurons = sum(math.prod(row.shape) for row in settings.outputs)
        last = math.prod(layers[-1].shape)
        file.expect(neurons == last, "outputs", f"the {last} neurons of the last layer", neurons)
    custom = any(layer.resolution == "custom" for layer in layers)
    needed = sorted([*PROGRAM_FILES, *([UNITS_FILE] if custom else [])])
    file.expect(sorted(settings.files) == needed, "files", f"{needed}", sorted(settings.files))
    return raw


def inputs_of(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, shape and dtype of every input of the network, in order."""
    if "inputs" in meta:
        return list(meta["inputs"])
    first = meta["layers"][0]
    return [{"name": first["name"], "shape": first["shape"], "dtype": "float"}]


def layers_of(meta: Mapping[str, Any]) -> tuple[LayerInfo, ...]:
    """Return the layers of the network, in order."""
    return tuple(
        LayerInfo(
            row["layer_id"],
            row["name"],
            row["kind"],
            tuple(row["shape"]),
            row["depth"],
            tuple(row["aliases"]),
        )
        for row in meta["layers"]
    )


def checked_tensor_file(path: Path) -> Path:
    """Path of a safetensors file whose header is of a sane size, to be loaded from there.

    The format keeps neither code nor pickles; the library checks offsets, but allocates what the
    first eight bytes say.

    Raises
    ------
    StoreError
        If the file is missing, a link, or says that its header is larger than the file.
    """
    size = file_size(path)
    with path.open("rb") as file:
        start = file.read(8)
    header = int.from_bytes(start, "little")
    if len(start) < 8 or header > MAX_HEADER_BYTES or 8 + header > size:
        raise StoreError(
            f"{path} is no safetensors file: expected a header of at most "
            f"{min(MAX_HEADER_BYTES, max(0, size - 8))} bytes, found {header}; do not trust it"
        )
    return path


def read_units(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Resolution of every layer: a name, or the user's own partition.

    Raises
    ------
    StoreError
        If the file of the partitions is not as it must be.
    """
    chosen: dict[str, Any] = {row["name"]: row["resolution"] for row in settings["layers"]}
    if UNITS_FILE not in settings["files"]:
        return chosen
    try:
        partitions = safetensors.numpy.load_file(checked_tensor_file(path / UNITS_FILE))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path / UNITS_FILE} cannot be read: {error}; copy it again") from error
    for row in settings["layers"]:
        if row["resolution"] == "custom":
            labels = partitions.get(row["name"])
            if (
                labels is None
                or list(labels.shape) != row["shape"]
                or labels.dtype.kind not in "iu"
            ):
                raise StoreError(
                    f"{path / UNITS_FILE} lacks a partition of shape {tuple(row['shape'])} for the "
                    f"layer {row['name']}: copy the store again"
                )
            chosen[row["name"]] = labels
    return chosen
