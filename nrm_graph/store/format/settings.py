"""``store.json`` and the files of the program: made once, read without trust."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

import safetensors.numpy

from nrm_graph.errors import InputError, StoreError
from nrm_graph.store.format.files import (
    create_once,
    file_size,
    parse_object,
    read_limited,
    seal,
    sha256_of,
)
from nrm_graph.store.format.manifest import is_text
from nrm_graph.store.format.place import refuse_foreign
from nrm_graph.store.format.schema import FORMAT_VERSION, MAX_TENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

MAX_SETTINGS_BYTES = 64 << 20
MAX_PROGRAM_BYTES = 256 << 20
MAX_HEADER_BYTES = 64 << 20
RESOLUTIONS = ("neuron", "channel", "feature", "token", "head", "custom")
INPUT_DTYPES = ("float", "int64", "bool")
PROGRAM_FILES = ("program.json", "weights.safetensors")
UNITS_FILE = "units.safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def create(
    path: Path,
    settings: Mapping[str, Any],
    program: str,
    weights: Mapping[str, npt.NDArray[Any]],
    units: Mapping[str, npt.NDArray[Any]],
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
    files = {
        "program.json": program.encode("utf-8"),
        "weights.safetensors": safetensors.numpy.save(dict(weights)),
    }
    if units:
        files[UNITS_FILE] = safetensors.numpy.save(dict(units))
    described = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    full = {"format_version": FORMAT_VERSION, **settings, "files": described}
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
        for name, data in files.items():
            if not create_once(path / name, data):
                _check_left(path, name, described[name])
        made = create_once(path / "store.json", text)
    except OSError as error:
        raise StoreError(
            f"cannot make a store at {path}: {error.strerror or error}; free space or permissions "
            "and run the same command again"
        ) from error
    if not made:
        check_same(read_settings(path), settings)


def _check_left(path: Path, name: str, described: Mapping[str, Any]) -> None:
    """Accept a file that another process, or an attempt that was cut off, has made alike."""
    same = file_size(path / name) == described["size"]
    if not (same and sha256_of(path / name) == described["sha256"]):
        raise StoreError(
            f"{path / name} is there already, of another program or partition: another process "
            "makes a store here with other settings, or an attempt was cut off; choose another "
            "folder, or remove this one"
        )


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a store with other settings.

    Raises
    ------
    StoreError
        Naming the first difference, with the store's value and the new one in short.
    """
    for name, words in (
        ("program_hash", "program"),
        ("composite", "composite"),
        ("coverage", "coverage"),
        ("top", "top"),
        ("mantissa_bits", "mantissa_bits"),
        ("classes", "classes"),
        ("preprocessing", "preprocessing"),
    ):
        _compare(words, found.get(name), wanted.get(name))
    ours, theirs = wanted["layers"], found["layers"]
    _compare("layers", [row["name"] for row in theirs], [row["name"] for row in ours])
    for old, new in zip(theirs, ours, strict=True):
        for name in ("resolution", "units", "n_units", "shape", "kind", "depth", "aliases"):
            words = "partition" if name == "units" else name
            _compare(f"{words} of layer {new['name']}", old.get(name), new.get(name))
    _compare("groups", found["groups"], wanted["groups"])
    for name in ("inputs", "outputs"):
        _compare(name, found.get(name), wanted.get(name))


def _compare(words: str, old: Any, new: Any) -> None:
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
    raw = parse_object(data, f"{path / 'store.json'}")
    version = raw.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoreError(
            f"{path} has format version {version!r}; this release reads version "
            f"{FORMAT_VERSION}: install the release that wrote the store"
        )

    def expect(holds: bool, field: str, expected: str, found: object) -> None:
        if not holds:
            raise StoreError(
                f"{path / 'store.json'} is malformed: expected {field} to be {expected}, found "
                f"{repr(found)[:100]}; copy the store again, and do not trust one from a stranger"
            )

    digest = raw.get("program_hash")
    valid = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
    expect(valid, "program_hash", "64 hexadecimal digits", digest)
    for name in ("composite", "versions"):
        expect(isinstance(raw.get(name), dict), name, "an object", raw.get(name))
    coverage = raw.get("coverage")
    number = isinstance(coverage, int | float) and not isinstance(coverage, bool)
    expect(number and 0 < coverage <= 1, "coverage", "a number in (0, 1]", coverage)  # type: ignore[operator]
    for name, limit in (("top", 1 << 62), ("mantissa_bits", 23)):
        value = raw.get(name)
        fits = value is None or _is_int(value, 1, limit)
        expect(fits, name, f"null or an integer from 1 to {limit}", value)
    text = raw.get("preprocessing")
    expect(text is None or is_text(text), "preprocessing", "null or text", text)
    classes = raw.get("classes")
    named = classes is None or (isinstance(classes, list) and all(map(is_text, classes)))
    expect(named, "classes", "null or a list of names", classes)
    layers, groups = raw.get("layers"), raw.get("groups")
    expect(isinstance(layers, list) and 0 < len(layers) <= 32768, "layers", "a list", layers)
    for position, layer in enumerate(layers or ()):
        problem = _layer_problem(layer, position)
        expect(problem is None, f"layers[{position}]", str(problem), layer)
    names = [layer["name"] for layer in layers or ()]
    expect(len(set(names)) == len(names), "the names of layers", "unique", sorted(names))
    expect(isinstance(groups, list), "groups", "a list", groups)
    for group in groups or ():
        three = isinstance(group, list) and len(group) == 3
        plain = three and all(_is_int(n, 0, 1 << 62) for n in group)
        expect(
            plain and group[1] < group[0] < len(names), "a group", "[dst, src, dense edges]", group
        )
    problem = _inputs_problem(raw["inputs"]) if "inputs" in raw else None
    expect(problem is None, "inputs", str(problem), raw.get("inputs"))
    if "outputs" in raw:
        problem = _outputs_problem(raw["outputs"], (layers or [{"shape": []}])[-1]["shape"])
        expect(problem is None, "outputs", str(problem), raw["outputs"])
    files = raw.get("files")
    expect(isinstance(files, dict), "files", "an object", files)
    own = any(layer["resolution"] == "custom" for layer in layers or ())
    needed = {*PROGRAM_FILES, *([UNITS_FILE] if own else [])}
    expect(set(files or ()) == needed, "files", f"{sorted(needed)}", sorted(files or ()))
    for name, info in (files or {}).items():
        good = isinstance(info, dict) and _is_int(info.get("size"), 0, 1 << 62)
        good = good and isinstance(info.get("sha256"), str)
        good = good and _SHA256.fullmatch(info["sha256"]) is not None
        expect(good, f"files.{name}", "size and sha256", info)
    return raw


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _tensors_problem(rows: Any, what: str, fields: Sequence[str]) -> str | None:
    """Say what a list of named tensors (inputs or outputs) should be, or None if it is."""
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_TENSORS:
        return f"a list of 1 to {MAX_TENSORS} {what}"
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(fields):
            return f"a list of {what} with {', '.join(fields[:-1])} and {fields[-1]}"
        if not is_text(row["name"]) or not row["name"]:
            return f"a list of {what} with names"
        shape = row["shape"]
        if not isinstance(shape, list) or not all(_is_int(d, 0, (1 << 31) - 1) for d in shape):
            return f"a list of {what} with shapes"
    if len({row["name"] for row in rows}) != len(rows):
        return f"a list of {what} with names of their own"
    return None


def _inputs_problem(inputs: Any) -> str | None:
    """Say what the list of a network's inputs should be, or None if it is."""
    problem = _tensors_problem(inputs, "inputs", ("name", "shape", "dtype"))
    if problem is None and any(row["dtype"] not in INPUT_DTYPES for row in inputs):
        return f"a list of inputs with a dtype out of {', '.join(INPUT_DTYPES)}"
    return problem


def _outputs_problem(outputs: Any, last: list[int]) -> str | None:
    """Say what the list of a network's outputs should be, or None if it is."""
    problem = _tensors_problem(outputs, "outputs", ("name", "shape"))
    if problem is None and sum(math.prod(row["shape"]) for row in outputs) != math.prod(last):
        return "a list of outputs that the last layer holds"
    return problem


def inputs_of(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, shape and dtype of every input of the network, in order."""
    if "inputs" in meta:
        return list(meta["inputs"])
    first = meta["layers"][0]
    return [{"name": first["name"], "shape": first["shape"], "dtype": "float"}]


def _layer_problem(layer: Any, position: int) -> str | None:
    """Say what an entry of ``layers`` should be, or None if it is."""
    if not isinstance(layer, dict):
        return "an object"
    if layer.get("layer_id") != position or not _is_int(layer["layer_id"], 0, 32767):
        return f"the layer of layer_id {position}: layers stand in their order"
    if not (is_text(layer.get("name")) and layer["name"] and is_text(layer.get("kind"))):
        return "a layer with name and kind"
    shape = layer.get("shape")
    if not isinstance(shape, list) or not all(_is_int(d, 0, (1 << 31) - 1) for d in shape):
        return "a layer with a shape"
    if layer.get("resolution") not in RESOLUTIONS:
        return f"a layer with a resolution out of {', '.join(RESOLUTIONS)}"
    if not _is_int(layer.get("n_units"), 0, min(math.prod(shape), (1 << 31) - 1)):
        return "a layer with n_units, at most one for each neuron"
    if not _is_int(layer.get("depth"), 0, 32767):
        return "a layer with a depth"
    aliases = layer.get("aliases")
    if not isinstance(aliases, list) or not all(map(is_text, aliases)):
        return "a layer with a list of aliases"
    return None


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
        own = safetensors.numpy.load_file(checked_tensor_file(path / UNITS_FILE))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path / UNITS_FILE} cannot be read: {error}; copy it again") from error
    for row in settings["layers"]:
        if row["resolution"] == "custom":
            labels = own.get(row["name"])
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
