"""Inputs as small pictures: what the store holds of them, with frames and heat maps."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from nrm_graph.plots.canvas import thumbnail
from nrm_graph.plots.common import OVERLAY, grey
from nrm_graph.plots.gallery import stretched

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.store.view import View

SIDE = 64
"""Pixels of a thumbnail's longer side, at most."""

ENLARGED = 112
"""Pixels of the longer side of a picture with a frame."""

LARGEST = 448
"""Pixels of a side of a heat map beside a graph, at most."""

_COLOURS = 64


def stored_image(db: View, tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """Return the first input that is an image, (H, W) or (H, W, C); None where none is.

    Parameters
    ----------
    db : Database
        The store.
    tensors : mapping of str to ndarray
        Tensors of one input, by the names of forward's arguments; a lone one may have none.
    """
    for info in db.topology.inputs:
        values = tensors.get(info.name, tensors.get(""))
        if info.kind != "input" or values is None or values.shape != info.shape:
            continue
        # Photographs that were damaged on their way are drawn as far as they go.
        values = np.nan_to_num(np.asarray(values, np.float64), posinf=0.0, neginf=0.0)
        if values.ndim == 3:
            last = db.resolutions[info.layer_id] in ("feature", "token")
            return values if last else np.moveaxis(values, 0, -1)
        if values.ndim == 2 and min(values.shape) > 1:
            return values
    return None


def thumbnail_png(image: npt.NDArray[Any]) -> bytes:
    """Return an image as a small PNG, stretched to its own range."""
    picture = _picture(stretched(image))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return _png(picture)


def framed_pngs(
    image: npt.NDArray[Any],
    heat: npt.NDArray[np.float64] | None,
    box: Mapping[str, int] | None,
) -> tuple[bytes, bytes | None]:
    """Return an image with its region framed, and in grey below its heat map.

    Parameters
    ----------
    image : ndarray, (H, W) or (H, W, C)
        The input.
    heat : ndarray, (H, W), or None
        Its signed relevance.
    box : mapping, or None
        The region: ``top``, ``left``, ``bottom``, ``right``, as of references.
    """
    plain = stretched(image)
    left = _framed(_picture(plain), plain.shape, box)
    if heat is None:
        return _png(left), None
    right = _overlaid(_picture(0.65 + 0.35 * grey(plain)), thumbnail(heat))
    return _png(left), _png(_framed(right, plain.shape, box))


@dataclass(frozen=True)
class HeatPicture:
    """An input in grey below its relevance.

    Attributes
    ----------
    png : bytes
        The picture.
    bound : float
        Where its colours end.
    """

    png: bytes
    bound: float


def heat_picture(image: npt.NDArray[Any], heat: npt.NDArray[np.float64]) -> HeatPicture:
    """Return an image (H, W, C) below its relevance (H, W); of a large one sums over blocks."""
    below = _picture(0.65 + 0.35 * grey(stretched(image)))
    below.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    blocks = thumbnail(heat, LARGEST)
    file = io.BytesIO()
    _overlaid(below, blocks).save(file, "PNG")
    return HeatPicture(file.getvalue(), _bound(blocks))


def _overlaid(below: Image.Image, blocks: npt.NDArray[np.float64]) -> Image.Image:
    """Lay the colours of relevance over a grey picture."""
    colours = Image.fromarray(OVERLAY((blocks / _bound(blocks) + 1) / 2, bytes=True))
    above = colours.resize(below.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(below.convert("RGBA"), above).convert("RGB")


def _bound(values: npt.NDArray[np.float64]) -> float:
    return float(np.abs(values).max()) or 1.0


def _picture(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray((255 * values).round().astype(np.uint8))


def _framed(
    picture: Image.Image, shape: tuple[int, ...], box: Mapping[str, int] | None
) -> Image.Image:
    scale = ENLARGED / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    picture = picture.convert("RGB").resize(size, smooth)
    if box is not None:
        across, down = size[0] / shape[1], size[1] / shape[0]
        edges = (
            round(box["left"] * across),
            round(box["top"] * down),
            round(box["right"] * across) - 1,
            round(box["bottom"] * down) - 1,
        )
        draw = ImageDraw.Draw(picture)
        draw.rectangle([edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1], None, "white", 3)
        draw.rectangle(edges, None, "#111111", 1)
    return picture


def _png(picture: Image.Image) -> bytes:
    if picture.mode == "RGB":
        picture = picture.quantize(_COLOURS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
