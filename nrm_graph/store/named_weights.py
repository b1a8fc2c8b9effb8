"""Weights that a store names and does not hold: known by their content, given when they are needed.

A tensor of the program that is, byte for byte, one of the model's own need not be copied: the store
keeps its name, type, shape and SHA-256.  Who asks for exact answers gives the file of the weights,
or the tensors themselves; no path of it stands in the store.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import Tensor

from nrm_graph.errors import InputError, StoreError, WeightsNeeded, first_line
from nrm_graph.network.ir.held_weights import holdable
from nrm_graph.store.format import settings
from nrm_graph.store.format.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

Given = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Tensor] | None
"""Weights as a caller gives them: files, or tensors by name."""
Weights = tuple[Path, ...] | Mapping[str, Tensor] | None
"""The same, with absolute paths."""

_HALF = ("F16", "BF16")
"""Types that programs hold as float32."""

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types by the names that safetensors gives them."""


@dataclass(frozen=True)
class _Content:
    """What a tensor is known by, as the program holds it."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} with SHA-256 {self.sha256[:12]}..."


@dataclass(frozen=True)
class _Offered:
    """A tensor of a file or mapping, that is read when its form is one that is sought."""

    source: str
    name: str
    form: tuple[str, tuple[int, ...]]
    read: Callable[[], Tensor]

    def content(self) -> tuple[_Content, Tensor]:
        # A copy of its own: the file may change, and so may a model that is trained further.
        tensor = self.read().cpu().clone().contiguous()
        content = _Content(*self.form, _sha256(tensor.to(_widened(tensor.dtype))))
        return content, holdable(tensor)


def described(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe the tensors of a program that are ones of the model's own, byte for byte.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Of the program.
    own : mapping of str to Tensor
        The model's ``state_dict()``.

    Returns
    -------
    dict
        By the program's name: what ``named`` of ``store.json`` says.
    """
    by_form: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        if isinstance(tensor, Tensor) and tensor.dtype in _TYPES:
            by_form.setdefault(_form(tensor), []).append(name)
    named = {}
    for name, tensor in weights.items():
        if tensor.dtype not in _TYPES:
            continue
        data = _bytes(tensor)
        # The one of the same name first.
        alike = sorted(by_form.get(_form(tensor), ()), key=name.__ne__)
        for other in alike:
            candidate = own[other].detach().cpu()
            if torch.equal(_bytes(candidate.to(_widened(candidate.dtype))), data):
                dtype, shape = _form(tensor)
                facts = {"dtype": dtype, "shape": list(shape), "sha256": _sha256(tensor)}
                named[name] = {"name": other, **facts}
                break
    return named


def checked_sources(weights: Given) -> Weights:
    """Bring weights that a caller gives to absolute paths, or a mapping of tensors.

    Parameters
    ----------
    weights : path, list of paths, mapping of str to Tensor, or None
        Files in safetensors format, or tensors.

    Raises
    ------
    InputError
        If it is none of these, or a file is missing, a link or no such file.
    """
    if weights is None or isinstance(weights, Mapping):
        return weights
    listed = [weights] if isinstance(weights, str | os.PathLike) else weights
    if not isinstance(listed, list | tuple) or not all(
        isinstance(file, str | os.PathLike) for file in listed
    ):
        raise InputError(
            "weights must be a file in safetensors format, a list of them, or a mapping of tensors "
            f"such as model.state_dict(), found {weights!r:.80}"
        )
    return tuple(_checked_file(Path(os.fsdecode(file))) for file in listed)


def given(meta: Mapping[str, Any], store: Path, weights: Weights) -> dict[str, Tensor]:
    """Find the tensors that a store names among those that are given.

    Parameters
    ----------
    meta : mapping
        Content of ``store.json``.
    store : Path
        Its folder, for messages.
    weights : tuple of Path, mapping of str to Tensor, or None
        As :func:`checked_sources` gives it.

    Raises
    ------
    WeightsNeeded
        If nothing is given.
    InputError
        If a tensor is missing or another one, or a file is damaged.
    """
    named: Mapping[str, Any] = meta.get("named") or {}
    if not named:
        return {}
    if weights is None:
        raise WeightsNeeded(
            f"{store} names {counted(len(named), 'tensor')} of its network without holding them: "
            "for exact answers open it with ng.open(..., weights=FILE), on the command line with "
            "--weights FILE, of the network's weights as safetensors"
        )
    places: dict[_Content, list[str]] = {}
    for name, row in named.items():
        content = _Content(row["dtype"], tuple(row["shape"]), row["sha256"])
        places.setdefault(content, []).append(name)
    forms = {(content.dtype, content.shape) for content in places}
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}  # by name: what is there instead
    for offered in _offered(weights):
        others[offered.name] = f"{offered.source} holds {offered.form[0]} {offered.form[1]}"
        if offered.form in forms:
            content, tensor = offered.content()
            others[offered.name] = f"{offered.source} holds {content}"
            for name in places.pop(content, ()):
                tensors[name] = tensor
            forms = {(left.dtype, left.shape) for left in places}
    if places:
        content, names = next(iter(places.items()))
        raise _unmatched(store, named[names[0]]["name"], content, others, len(named) - len(tensors))
    return tensors


def _unmatched(
    store: Path, name: str, content: _Content, others: Mapping[str, str], missing: int
) -> InputError:
    """Say of a tensor that is not among those given what is there under its name."""
    there = others.get(name)
    found = f"{there} under this name" if there else "no tensor of this name was given"
    more = f" ({missing - 1:,} more do not match)" if missing > 1 else ""
    return InputError(
        f"the tensor {name!r} of the network of {store} was {content}; {found}{more}: pass the "
        "weights that the store was made with"
    )


def _offered(weights: tuple[Path, ...] | Mapping[str, Any]) -> Iterator[_Offered]:
    """Yield the tensors that are given; none is read yet."""
    if isinstance(weights, Mapping):
        for name, tensor in weights.items():
            if isinstance(tensor, Tensor) and tensor.dtype in _TYPES:
                yield _Offered("weights", str(name), _form(tensor), tensor.detach)
        return
    for path in weights:
        try:
            with safetensors.safe_open(_checked_file(path), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    form = ("F32" if dtype in _HALF else dtype, tuple(part.get_shape()))
                    yield _Offered(str(path), name, form, partial(file.get_tensor, name))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise InputError(
                f"the weights in {path} cannot be read: {first_line(error)}; save them again with "
                "safetensors"
            ) from error


def _checked_file(path: Path) -> Path:
    """Refuse what is no plain file, or says that its header is larger than it is."""
    try:
        path = path.expanduser().absolute()
        mode = path.lstat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"there is no file of weights {str(path)!r:.200}: {reason}") from None
    if not stat.S_ISREG(mode):
        found = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise InputError(
            f"expected a plain file of weights, {path} is {found}: give the file itself"
        )
    try:
        return settings.checked_tensor_file(path)
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"the weights in {path} cannot be read: {error.strerror}") from None


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if _TYPES.get(dtype) in _HALF else dtype


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return _TYPES[_widened(tensor.dtype)], tuple(tensor.shape)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor).numpy().data).hexdigest()
