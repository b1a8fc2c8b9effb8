"""A folder of a language model, looked at before transformers is: what runs no code, and is whole.

Nothing of it is trusted.  Its settings are JSON, its weights safetensors, and both lie in the
folder itself; what names code, adapters or numbers of another kind is refused with a sentence.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "hf:"
"""How the name of a language model begins, before its folder or its name on the hub."""

MAX_JSON_BYTES = 64 << 20
MAX_HEADER_BYTES = 64 << 20
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")
_FORBIDDEN = {
    "auto_map": "names Python code of its own (auto_map), which is never run: convert it to a "
    "model that transformers has itself",
    "custom_generate": "names Python code of its own (custom_generate), which is never run",
    "transformers_weights": "names another file of weights (transformers_weights): call it "
    "model.safetensors, and leave the entry out",
    "quantization_config": "is quantised (quantization_config): give the float model that it was "
    "made from",
    "compression_config": "is compressed (compression_config): give the float model that it was "
    "made from",
}


@dataclass(frozen=True)
class Folder:
    """A folder whose files were looked at.

    Attributes
    ----------
    path : Path
        The folder.
    config : dict
        Content of ``config.json``.
    weights : tuple of Path
        Its files of safetensors.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]


def checked(path: Path) -> Folder:
    """Look at a folder before anything of it is loaded.

    Raises
    ------
    InputError
        Saying what is missing, or what is not loaded and why.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is {'a file' if path.exists() else 'not there'}: expected a folder as "
            "save_pretrained writes it, with config.json, a tokenizer and model.safetensors"
            + (" (GGUF is not read)" if path.suffix.lower() == ".gguf" else "")
        )
    names = sorted(entry.name for entry in path.iterdir())
    if "adapter_config.json" in names:
        raise InputError(
            f"{path} holds an adapter (adapter_config.json): merge it into its model "
            "(merge_and_unload) and save that"
        )
    config = checked_settings(path, names)
    weights = _weights(path, names)
    for file in path.iterdir():
        _refuse_outside(path, file)
    for file in weights:
        _check_header(file)
    return Folder(path, config, weights)


def checked_settings(path: Path, names: list[str]) -> dict[str, Any]:
    """Read ``config.json``; it and the tokenizer's settings must name no code.

    Raises
    ------
    InputError
        If one is missing, no JSON, or asks for what is not loaded.
    """
    if "config.json" not in names:
        raise InputError(
            f"{path} has no config.json: expected a folder as save_pretrained writes it"
        )
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if name not in names:
            continue
        settings[name] = read_json(path, name)
        for key, value in _entries(settings[name]):
            if key in _FORBIDDEN and value:
                raise InputError(f"{path / name} {_FORBIDDEN[key]}")
            files = value if isinstance(value, list) else [value]
            leaving = [file for file in files if isinstance(file, str) and not _is_inside(file)]
            if key.endswith(("_file", "_files")) and leaving:
                raise InputError(
                    f"{path / name} names a file outside its folder: {leaving[0]!r:.100}"
                )
    config: dict[str, Any] = settings["config.json"]
    return config


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a folder; it must hold a mapping.

    Raises
    ------
    InputError
        If it is no such file, is too large, or leads out of the folder.
    """
    file = path / name
    _refuse_outside(path, file)
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InputError(
                f"{file} holds {size:,} bytes, expected at most {MAX_JSON_BYTES:,} of settings"
            )
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, expected a mapping")
    return content


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Every key with its value, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _weights(path: Path, names: list[str]) -> tuple[Path, ...]:
    """Files of the weights: one, or those of the index."""
    if WEIGHTS in names:
        return (path / WEIGHTS,)
    if INDEX in names:
        places = read_json(path, INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise InputError(f"{path / INDEX} has no weight_map: save the model again")
        files = sorted({str(name) for name in places.values()})
        for name in files:
            if not _is_inside(name) or Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(
                    f"{path / INDEX} names {name!r:.100}, expected the names of files of "
                    "safetensors that lie in the folder itself"
                )
            if name not in names:
                raise InputError(f"{path} lacks the file {name!r:.100} that its index names")
        return tuple(path / name for name in files)
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if pickles:
        raise InputError(
            f"{path} holds weights as {pickles[0]}, which may run code when it is read: expected "
            "model.safetensors (model.save_pretrained writes it)"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        raise InputError(
            f"{path} holds GGUF, whose numbers are quantised: expected model.safetensors"
        )
    raise InputError(f"{path} has no weights: expected model.safetensors")


def _is_inside(name: str) -> bool:
    """Whether the name of a file stays in its folder."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and ".." not in parts and parts[0] != "" and ":" not in parts[0]


def _refuse_outside(path: Path, file: Path) -> None:
    """Refuse a link that leads out of the folder.

    The hub's cache keeps its files as links to ``blobs``, beside its folders ``snapshots``.
    """
    root = path.resolve()
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    if file.is_symlink() and not file.resolve().is_relative_to(root):
        raise InputError(
            f"{file} is a link that leads out of its folder: put the file itself there"
        )


def _check_header(file: Path) -> None:
    """Refuse a file that is no safetensors, or holds numbers of other kinds."""
    try:
        with file.open("rb") as data:
            size = os.fstat(data.fileno()).st_size
            length = int.from_bytes(data.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InputError(f"{file} is no safetensors file: it is damaged, or another kind")
            header = json.loads(data.read(length))
        kinds = {row["dtype"] for name, row in header.items() if name != "__metadata__"}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
        raise InputError(
            f"{file} is no safetensors file: it is damaged, or of another kind"
        ) from None
    others = sorted(str(kind) for kind in kinds if kind not in _TYPES)
    if others:
        raise InputError(
            f"{file} holds numbers of type {', '.join(others)[:100]}, expected floats of 16 to 64 "
            "bits: give the model that was not quantised"
        )
