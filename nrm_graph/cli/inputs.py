"""INPUTS of the command line: a folder of images, an image, or arrays, read one at a time."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrm_graph.cli.array_files import arrays_of
from nrm_graph.errors import InputError, first_line

Preprocessing = Callable[[Any], torch.Tensor]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
PIXELS = "pixels / 255"
AS_GIVEN = "floats as they stand in the file"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Inputs(Sequence[Any]):
    """A data set: each input is read when it is asked for, so that one that fails stands alone.

    Parameters
    ----------
    keys : list of str
        Names of the inputs, unique.
    read : callable
        Gives the tensor of an input from its position, or several by their names.
    labels : list or None
        By position; None where there is no label.
    preprocessing : str
        How the inputs are prepared, in words.
    tokens : callable, optional
        Gives the texts of the positions of an input.
    """

    def __init__(
        self,
        keys: list[str],
        read: Callable[[int], Any],
        labels: list[Any] | None,
        preprocessing: str,
        tokens: Callable[[int], list[str]] | None = None,
    ) -> None:
        self.keys = keys
        self.preprocessing = preprocessing
        self._read = read
        self._labels = labels
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: Any) -> Any:
        """Return ``input``, ``key`` and, if known, ``label`` of one input.

        Raises
        ------
        InputError
            If it is damaged or cannot be read.
        """
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        item: dict[str, Any] = {"input": self._read(position), "key": self.keys[position]}
        if self._tokens is not None:
            item["tokens"] = self._tokens(position)
        label = None if self._labels is None else self._labels[position]
        return item if label is None else item | {"label": label}


def load_inputs(path: str | os.PathLike[str], preprocessing: Preprocessing | None = None) -> Inputs:
    """Find the inputs that INPUTS names; each is read when its turn comes.

    Parameters
    ----------
    path : path-like
        A folder of images (the first sub-folder is the label), an image, an ``.npy`` array, or an
        ``.npz`` with ``images`` or ``inputs``, or with several arrays named like forward's
        arguments; and perhaps ``labels``, and ``tokens`` (texts of the positions, a row for each
        input).  The first axis of an array counts the inputs.  Float arrays are taken as they
        are, whole numbers as int64 (token ids); lone uint8 arrays are images, of shape (N, H, W),
        (N, H, W, C) or (N, C, H, W) with one or three channels.
    preprocessing : callable, optional
        Turns a PIL image in RGB into an input; without one, images become floats in [0, 1] of
        shape (C, H, W), where grey images have one channel.

    Returns
    -------
    Inputs
        A sequence of mappings with ``input`` (tensor, or tensors by name), ``key`` (relative
        path, or name and number) and, if known, ``label`` and ``tokens``; its
        ``keys`` and ``len`` are known at once.

    Raises
    ------
    InputError
        If something is missing, empty or of another kind; a damaged image is named when it is
        read.

    Notes
    -----
    Images are read as torchvision's ``ImageFolder`` reads them: the first frame of an animation,
    without transparency (the colours below it show) and without turning by the EXIF orientation.
    Other than there, 16-bit grey images keep their range instead of being clipped at 255.  Files
    and folders whose names begin with a dot are left out, links are followed, and what is no
    Unicode in a file's name stands escaped in its key.
    """
    place = located(path)
    if place.is_dir():
        return _folder(place, preprocessing)
    if place.suffix.lower() in _ARRAY_SUFFIXES:
        return _array(place, preprocessing)
    return Inputs(
        [_unicode(place.name)], lambda _: _image(place, preprocessing), None, words(preprocessing)
    )


def located(path: str | os.PathLike[str]) -> Path:
    """Return where INPUTS are, if they are of a kind that is read; nothing is opened.

    Raises
    ------
    InputError
        If something is missing, or of another kind.
    """
    text = os.fspath(path)
    if not text:
        raise InputError("INPUTS is empty: expected a folder of images, an image, .npy or .npz")
    if "://" in text:
        raise InputError(f"INPUTS {text} is an address: download the files and name the folder")
    place = Path(text)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"there is no file or folder {text!r} ({reason})") from None
    if stat.S_ISDIR(mode):
        if next(_files(place, (), ()), None) is None:
            raise InputError(
                f"the folder {place} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        return place
    if not stat.S_ISREG(mode):
        raise InputError(f"{text} is no plain file: expected a folder of images, an image or array")
    if place.suffix.lower() not in IMAGE_SUFFIXES | _ARRAY_SUFFIXES:
        raise InputError(
            f"cannot read inputs from {place}: expected a folder of images, an image, .npy or .npz"
        )
    return place


def words(preprocessing: Preprocessing | None) -> str:
    """Say in one line how images are prepared; the same in every process."""
    if preprocessing is None:
        return PIXELS
    text = _ADDRESS.sub("", " ".join(repr(preprocessing).split()))
    name = getattr(preprocessing, "__qualname__", None)
    if name is not None:  # a function: its repr says no more than its name
        text = f"{getattr(preprocessing, '__module__', '')}.{name}"
    return _unicode(text)[:1000]


def _unicode(name: str) -> str:
    """Return a file's name with its bytes that are no Unicode escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _folder(path: Path, preprocessing: Preprocessing | None) -> Inputs:
    found = sorted(_files(path, (), ()))
    keys = [_unicode("/".join(parts)) for parts in found]
    labels = [_unicode(parts[0]) if len(parts) > 1 else None for parts in found]

    def read(position: int) -> torch.Tensor:
        return _image(path.joinpath(*found[position]), preprocessing)

    return Inputs(keys, read, labels, words(preprocessing))


def _files(
    folder: Path, parts: tuple[str, ...], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, ...]]:
    """Relative paths of images; links are followed, but never back to a folder above."""
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    above = (*above, (here.st_dev, here.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            found = entry.stat()
        except OSError:  # a link to nothing or to itself: it fails when its turn comes
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) not in above:
                yield from _files(Path(entry.path), (*parts, entry.name), above)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and (
            found is None or stat.S_ISREG(found.st_mode)
        ):
            yield (*parts, entry.name)


def _image(path: Path, preprocessing: Preprocessing | None) -> torch.Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        if not path.stat().st_size:
            raise InputError(f"cannot read the image {path}: the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, unused transparency
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                picture = _eight_bits(image, preprocessing is not None)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read the image {path}: it is damaged, or no image that Pillow knows"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = re.search(r"\((\d+) pixels\)", str(error))
        raise InputError(
            f"cannot read the image {path}: it has {size[1] if size else 'too many'} pixels, "
            f"expected at most {Image.MAX_IMAGE_PIXELS}: make it smaller"
        ) from None
    except Exception as error:  # decoders of damaged files raise anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot read the image {path}: {reason}") from None
    return _prepared(picture, preprocessing, str(path))


def _eight_bits(image: Any, colour: bool) -> Any:
    """First frame as RGB, or as L where the image is grey and may stay so.

    Raises
    ------
    InputError
        If the pixels have 32 bits: their range is not known.
    """
    from PIL import Image

    if image.mode in ("I", "F"):
        raise InputError(
            f"cannot read the image {image.filename}: it has 32 bits a pixel, whose range is not "
            "known: save it with 8 or 16 bits, or as an .npy of floats"
        )
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        wide = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(wide / np.float32(257)).astype(np.uint8))
    grey = not colour and image.mode in ("1", "L", "LA")
    return image.convert("L" if grey else "RGB")


def _prepared(picture: Any, preprocessing: Preprocessing | None, name: str) -> torch.Tensor:
    if preprocessing is None:
        pixels = np.asarray(picture)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255))
    try:
        value = preprocessing(picture)
    except Exception as error:  # the user's code can raise anything
        raise InputError(
            f"the preprocessing of {name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"the preprocessing of {name} gave {type(value).__name__}, expected a tensor"
        )
    return value


def _array(path: Path, preprocessing: Preprocessing | None) -> Inputs:
    found = arrays_of(path)
    shape = next(iter(found.values.values())).shape
    for name, rows in found.values.items():
        which = f"{name!r} of {path}" if name else str(path)
        if not rows.shape or not rows.shape[0] or (not name and len(rows.shape) < 2):
            raise InputError(
                f"{which} has shape {rows.shape}: the first axis must count at least one input, "
                "as in (1, 6) for one sequence of 6"
            )
        if rows.dtype.kind not in "fiub":
            raise InputError(
                f"{which} holds {rows.dtype}: expected floats, uint8 for images, or whole numbers "
                "for token ids"
            )
        if rows.shape[0] != shape[0]:
            raise InputError(
                f"{which} has {rows.shape[0]} rows, another array {shape[0]}: expected one for "
                "each input"
            )
    lone = found.values.get("")
    pictures = lone is not None and lone.dtype == np.uint8
    if pictures and not _is_pictures(shape):
        raise InputError(
            f"{path} holds uint8 of shape {shape}: images are (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with one or three channels; give other inputs as floats or int64"
        )
    labels = found.labels
    if labels is not None and (not isinstance(labels, list) or len(labels) != shape[0]):
        raise InputError(f"{path} has {shape[0]} inputs and labels that do not match them")
    texts = found.tokens
    if texts is not None and (
        texts.dtype.kind != "U" or len(texts.shape) != 2 or texts.shape[0] != shape[0]
    ):
        raise InputError(
            f"{path} has tokens of type {texts.dtype} and shape {texts.shape}: expected text, a "
            "row for each input"
        )
    keys = [f"{_unicode(path.stem)}-{i:05d}" for i in range(shape[0])]

    def read(position: int) -> Any:
        if lone is not None:
            return _tensor(lone[position], preprocessing if pictures else None, keys[position])
        return {name: _plain(rows[position]) for name, rows in found.values.items()}

    tokens = None if texts is None else lambda position: texts[position].tolist()
    return Inputs(keys, read, labels, words(preprocessing) if pictures else AS_GIVEN, tokens)


def _is_pictures(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)))


def _plain(value: Any) -> torch.Tensor:
    """Floats as float32 or float64, whole numbers as int64; bool and uint8 stay."""
    if value.dtype.kind in "iu" and value.dtype != np.uint8:
        if value.dtype == np.uint64 and value.size and value.max() > np.iinfo(np.int64).max:
            raise InputError("a whole number of more than 63 bits is no token id")
        return torch.from_numpy(np.array(value, dtype=np.int64))
    if value.dtype.kind != "f":
        return torch.from_numpy(np.array(value))
    kind = np.float64 if value.dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):  # what overflows is refused as infinity
        return torch.from_numpy(np.array(value, dtype=kind))


def _tensor(value: Any, preprocessing: Preprocessing | None, key: str) -> torch.Tensor:
    if value.dtype != np.uint8:
        return _plain(value)
    from PIL import Image

    pixels = np.asarray(value)
    if pixels.ndim == 3:
        pixels = pixels if pixels.shape[2] in (1, 3) else pixels.transpose(1, 2, 0)
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return _prepared(
        picture if preprocessing is None else picture.convert("RGB"), preprocessing, key
    )
