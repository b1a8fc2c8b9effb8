"""MODEL and INPUTS of the command line: networks by name or file, images and arrays."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    import os

Preprocessing = Callable[[Any], torch.Tensor]
Loaded = tuple[torch.nn.Module, Preprocessing | None, tuple[str, ...] | None]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_FORMS = (
    "torchvision:NAME, torchvision:NAME@weights.pt, torchvision:NAME@random:SEED, a .pt2 file or "
    "package.module:function"
)


def load_model(spec: str) -> Loaded:
    """Load the network that MODEL names.

    Parameters
    ----------
    spec : str
        ``torchvision:vgg16`` (default pretrained weights, downloaded once by torchvision),
        ``torchvision:vgg16@weights.pt`` (a state dict, read without pickled code),
        ``torchvision:vgg16@random:0`` (seeded random weights), a ``.pt2`` file written by
        ``torch.export.save``, or ``package.module:function``.  The last two run code: use only
        what you trust.

    Returns
    -------
    model : torch.nn.Module
        The network.
    preprocessing : callable or None
        Turns a PIL image into the network's input.
    classes : tuple of str or None
        Names of the outputs.  A weights file of as many outputs as torchvision's default
        weights is taken to have their classes.

    Raises
    ------
    InputError
        If there is no such model, or it cannot be loaded.
    """
    if "://" in spec:
        raise InputError(f"MODEL {spec} is an address: download the file and name it here")
    if spec.startswith("torchvision:"):
        return _torchvision(spec.removeprefix("torchvision:"))
    if spec.endswith(".pt2"):
        return _archive(_existing(spec)), None, None
    module, colon, function = spec.partition(":")
    if not colon or not module or not function:
        raise InputError(f"cannot tell what model {spec!r} is: expected {_FORMS}")
    return _function(spec, module, function)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _existing(path: str | os.PathLike[str]) -> Path:
    found = Path(path)
    if not found.exists():
        raise InputError(f"there is no file or folder {found}")
    return found


def _torchvision(spec: str) -> Loaded:
    from torchvision import models

    name, _, source = spec.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "torchvision.models lists them"
        raise InputError(f"torchvision has no classification model {name!r}: {hint}")
    weights = models.get_model_weights(name).DEFAULT
    preprocessing = weights.transforms()
    classes = tuple(str(c) for c in weights.meta["categories"])
    if not source:
        try:
            return models.get_model(name, weights=weights), preprocessing, classes
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot get the pretrained weights of {name} ({_first_line(error)}); without a "
                f"network give a file, torchvision:{name}@weights.pt, or random weights, "
                f"torchvision:{name}@random:0"
            ) from None
    if source.startswith("random:"):
        seed = source.removeprefix("random:")
        if not seed.isascii() or not seed.isdigit() or int(seed) >= 2**63:
            raise InputError(f"the seed of random weights is an integer, found {seed!r}")
        return _build(name, seed=int(seed)), preprocessing, None
    state = _state_dict(_existing(source))
    model = _build(name)
    head = [key for key in model.state_dict() if key.endswith(".bias")][-1]
    outputs = int(state[head].shape[0]) if head in state and state[head].ndim == 1 else None
    if outputs not in (None, model.state_dict()[head].shape[0]):
        model = _build(name, num_classes=outputs)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"the weights in {source} are not those of {name}: {problem}") from None
    return model, preprocessing, classes if outputs == len(classes) else None


def _build(name: str, seed: int = 0, **options: Any) -> torch.nn.Module:
    from torchvision import models

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on the initialisation of old models
        torch.manual_seed(seed)
        model: torch.nn.Module = models.get_model(name, weights=None, **options)
    return model


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not weights
        raise InputError(
            f"cannot read weights from {path}, expected a state dict of tensors saved by "
            f"torch.save: {_first_line(error)}"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(value, torch.Tensor) for value in found.values())
    ):
        raise InputError(f"{path} does not hold a state dict: expected names and tensors")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def _archive(path: Path) -> torch.nn.Module:
    try:
        model: torch.nn.Module = torch.export.load(path).module()
    except Exception as error:  # an archive can fail in any way: it is code
        raise InputError(
            f"cannot load {path}, expected a file written by torch.export.save: "
            f"{_first_line(error)}"
        ) from None
    # An exported program is in one mode for good, and torch refuses to be told so.
    model.eval = lambda: model  # type: ignore[method-assign]
    for module in model.modules():
        module.training = False
    return model


def _function(spec: str, module: str, function: str) -> Loaded:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # a console script does not look into the current folder by itself
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module)
        for part in function.split("."):
            target = getattr(target, part)
        found = target if isinstance(target, torch.nn.Module) else target()
    except Exception as error:  # the user's code can raise anything
        raise InputError(
            f"cannot load the model {spec}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    model, preprocessing, classes = (
        (*found, None, None)[:3] if isinstance(found, tuple) else (found, None, None)
    )
    if not isinstance(model, torch.nn.Module) or not (
        preprocessing is None or callable(preprocessing)
    ):
        raise InputError(
            f"{spec} must give a torch.nn.Module, alone or in a tuple with a preprocessing and "
            f"the class names, found {type(model).__name__}"
        )
    return model, preprocessing, None if classes is None else tuple(str(c) for c in classes)


def load_inputs(
    path: str | os.PathLike[str], preprocessing: Preprocessing | None = None
) -> Iterator[dict[str, Any]]:
    """Read the inputs that INPUTS names, one at a time.

    Parameters
    ----------
    path : path-like
        A folder of images (sub-folders are labels), an image, an ``.npy`` array, or an ``.npz``
        with ``images`` or ``inputs`` and perhaps ``labels``.  The first axis of an array counts
        the inputs.  Float arrays are taken as they are; uint8 arrays are images, of shape
        (N, H, W), (N, H, W, C) or (N, C, H, W) with one or three channels.
    preprocessing : callable, optional
        Turns a PIL image into an input; without one, images become floats in [0, 1] of shape
        (C, H, W), where grey images have one channel.

    Returns
    -------
    iterator of dict
        ``input`` (tensor), ``key`` (relative path, or name and number) and, if known, ``label``.

    Raises
    ------
    InputError
        If something is missing, empty, damaged or of another kind; a damaged file of a folder
        is named when its turn comes.
    """
    if "://" in str(path):
        raise InputError(f"INPUTS {path} is an address: download the files and name the folder")
    path = _existing(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path, preprocessing)
    if suffix in (".npy", ".npz"):
        return _array(path, suffix, preprocessing)
    if suffix in IMAGE_SUFFIXES:
        return iter([{"input": _image(path, preprocessing), "key": path.name}])
    raise InputError(
        f"cannot read inputs from {path}: expected a folder of images, an image, .npy or .npz"
    )


def _folder(path: Path, preprocessing: Preprocessing | None) -> Iterator[dict[str, Any]]:
    found = sorted(
        (file.relative_to(path) for file in path.rglob("*") if _is_image(file, path)),
        key=lambda name: name.as_posix(),
    )
    if not found:
        raise InputError(f"the folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def images() -> Iterator[dict[str, Any]]:
        for name in found:
            label = {"label": name.parts[0]} if len(name.parts) > 1 else {}
            yield {"input": _image(path / name, preprocessing), "key": name.as_posix(), **label}

    return images()


def _is_image(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()


def _image(path: Path, preprocessing: Preprocessing | None) -> torch.Tensor:
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            grey = preprocessing is None and image.mode in ("1", "L")
            picture = image.convert("L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise InputError(f"cannot read the image {path}: {_first_line(error)}") from None
    return _prepared(picture, preprocessing, str(path))


def _prepared(picture: Any, preprocessing: Preprocessing | None, name: str) -> torch.Tensor:
    if preprocessing is None:
        pixels = np.asarray(picture)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255))
    value = preprocessing(picture)
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"the preprocessing of {name} gave {type(value).__name__}, expected a tensor"
        )
    return value


def _array(
    path: Path, suffix: str, preprocessing: Preprocessing | None
) -> Iterator[dict[str, Any]]:
    labels: list[Any] | None = None
    try:
        if suffix == ".npy":
            values: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                name = next((n for n in ("images", "inputs") if n in archive), None)
                if name is None:
                    raise InputError(
                        f"{path} holds {', '.join(archive.files) or 'nothing'}: expected an "
                        "array named images or inputs"
                    )
                values = archive[name]
                labels = archive["labels"].tolist() if "labels" in archive else None
    except InputError:
        raise
    except Exception as error:  # damaged files raise from zipfile, zlib, numpy and the system
        raise InputError(f"cannot read the array {path}: {_first_line(error)}") from None
    if not isinstance(values, np.ndarray) or values.ndim < 2 or not len(values):
        shape = getattr(values, "shape", ())
        raise InputError(f"{path} has shape {shape}: the first axis must count at least one input")
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise InputError(f"{path} holds {values.dtype}: expected floats, or uint8 for images")
    if values.dtype == np.uint8 and not _is_pictures(values.shape):
        raise InputError(
            f"{path} holds uint8 of shape {values.shape}: images are (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with one or three channels; give other inputs as floats"
        )
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(values)):
        raise InputError(f"{path} has {len(values)} inputs and labels that do not match them")

    def items() -> Iterator[dict[str, Any]]:
        for i, value in enumerate(values):
            key = f"{path.stem}-{i:05d}"
            label = {} if labels is None else {"label": labels[i]}
            yield {"input": _tensor(value, preprocessing, key), "key": key, **label}

    return items()


def _is_pictures(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)))


def _tensor(value: Any, preprocessing: Preprocessing | None, key: str) -> torch.Tensor:
    if value.dtype != np.uint8:
        kind = np.float64 if value.dtype == np.float64 else np.float32
        return torch.from_numpy(np.array(value, dtype=kind))
    from PIL import Image

    pixels = np.asarray(value)
    if pixels.ndim == 3:
        pixels = pixels if pixels.shape[2] in (1, 3) else pixels.transpose(1, 2, 0)
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return _prepared(
        picture if preprocessing is None else picture.convert("RGB"), preprocessing, key
    )
