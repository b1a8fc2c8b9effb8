"""MODEL of the command line: networks by name or file."""

from __future__ import annotations

import difflib
import importlib
import logging
import stat
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from nrm_graph.errors import InputError, first_line
from nrm_graph.language import folder, loading
from nrm_graph.language.language_model import LanguageModel

Preprocessing = Callable[[Any], torch.Tensor]
Model = torch.nn.Module | LanguageModel
Loaded = tuple[Model, Preprocessing | None, tuple[str, ...] | None]

_FORMS = (
    "torchvision:NAME, torchvision:NAME@weights.pt, torchvision:NAME@random:SEED, hf:FOLDER, "
    "hf:NAME, a .pt2 file or package.module:function"
)


def load_model(spec: str) -> Loaded:
    """Load the network that MODEL names.

    Parameters
    ----------
    spec : str
        ``torchvision:vgg16`` (default pretrained weights, downloaded once by torchvision),
        ``torchvision:vgg16@weights.pt`` (a state dict, read without pickled code),
        ``torchvision:vgg16@random:0`` (seeded random weights, no matrix of them all zeros),
        ``hf:FOLDER`` or ``hf:NAME`` (a language model, see :func:`nrm_graph.load_model`), a
        ``.pt2`` file written by ``torch.export.save``, or ``package.module:function``.  The last
        two run code: use only what you trust.

    Returns
    -------
    model : torch.nn.Module or LanguageModel
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
    check_model(spec)
    if spec.startswith(folder.PREFIX):
        return loading.load_model(spec), None, None
    if spec.startswith("torchvision:"):
        return _torchvision(spec.removeprefix("torchvision:"))
    if spec.endswith(".pt2"):
        return _archive(Path(spec)), None, None
    module, _, function = spec.partition(":")
    return _function(spec, module, function)


def check_model(spec: str) -> None:
    """Refuse a MODEL that names nothing, before any is loaded and code is run.

    Raises
    ------
    InputError
        Naming what is missing.
    """
    if "://" in spec:
        raise InputError(f"MODEL {spec} is an address: download the file and name it here")
    if spec.startswith(folder.PREFIX):
        loading.check_place(spec)
    elif spec.startswith("torchvision:"):
        name, _, source = spec.removeprefix("torchvision:").partition("@")
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "torchvision.models lists them"
            raise InputError(f"torchvision has no classification model {name!r}: {hint}")
        seed = source.removeprefix("random:")
        if seed != source:
            if not seed.isascii() or not seed.isdigit() or len(seed) > 19 or int(seed) >= 2**63:
                raise InputError(
                    f"the seed of random weights is an integer from 0 to 2**63 - 1, found {seed!r}"
                )
        elif source:
            _refuse_missing(source)
    elif spec.endswith(".pt2"):
        _refuse_missing(spec)
    elif not all(spec.partition(":")):
        raise InputError(f"cannot tell what model {spec!r} is: expected {_FORMS}")


def _refuse_missing(path: str) -> None:
    try:
        is_folder = stat.S_ISDIR(Path(path).stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"there is no file {path!r} ({reason})") from None
    if is_folder:
        raise InputError(f"{path} is a folder: expected a file")


def _torchvision(spec: str) -> Loaded:
    from torchvision import models

    name, _, source = spec.partition("@")
    weights = models.get_model_weights(name).DEFAULT
    preprocessing = weights.transforms()
    classes = tuple(str(c) for c in weights.meta["categories"])
    if not source:
        try:
            return models.get_model(name, weights=weights), preprocessing, classes
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot get the pretrained weights of {name} ({first_line(error)}); without a "
                f"network give a file, torchvision:{name}@weights.pt, or random weights, "
                f"torchvision:{name}@random:0"
            ) from None
    if source.startswith("random:"):
        seed = int(source.removeprefix("random:"))
        return _woken(_build(name, seed=seed), seed), preprocessing, None
    state = _state_dict(Path(source))
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


@torch.no_grad()
def _woken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draw matrices that begin as zeros, such as a vision transformer's head, at random too.

    Of a network that answers 0 to everything there is nothing to explain.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(0.0, 0.02, generator=generator)
    return model


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not weights
        reason = first_line(error)
        if " " not in reason:  # the text of a KeyError is a key
            reason = f"it is damaged, or of another kind ({type(error).__name__})"
        raise InputError(
            f"cannot read weights from {path}, expected a state dict of tensors saved by "
            f"torch.save or safetensors: {reason}"
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
    told = logging.getLogger("torch.export")
    level = told.level
    told.setLevel(logging.CRITICAL)  # what it writes of its own, traceback and all
    try:
        with warnings.catch_warnings():  # torch 2.9 warns of a buffer of its own
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            model: torch.nn.Module = torch.export.load(path).module()
    except Exception as error:  # an archive can fail in any way: it is code
        raise InputError(
            f"cannot load {path}, expected a file written by torch.export.save: {first_line(error)}"
        ) from None
    finally:
        told.setLevel(level)
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
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise InputError(
            f"cannot load the model {spec}: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    given = found if isinstance(found, tuple) else (found,)
    model, preprocessing, classes = (*given, None, None, None)[:3]
    fitting = (
        0 < len(given) <= 3
        and isinstance(model, torch.nn.Module)
        and (preprocessing is None or callable(preprocessing))
        and (classes is None or (isinstance(classes, Iterable) and not isinstance(classes, str)))
    )
    if not fitting:
        kinds = ", ".join(type(part).__name__ for part in given[:4]) or "nothing"
        raise InputError(
            f"{spec} must give a torch.nn.Module, alone or in a tuple with a preprocessing and "
            f"the class names, found {kinds}"
        )
    return model, preprocessing, None if classes is None else tuple(str(c) for c in classes)
