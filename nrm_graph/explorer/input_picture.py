"""The input with the relevance of its neurons: a heat map, a strip of tokens, or a table."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from dash import html
from PIL import Image

from nrm_graph.explorer import parts
from nrm_graph.explorer.stored_texts import tame
from nrm_graph.network.unit_names import token_axis
from nrm_graph.plots.common import OVERLAY, grey
from nrm_graph.plots.gallery import stretched

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.topology import LayerInfo

LARGEST = 448
"""Pixels of a side that is sent; of a larger input sums over blocks."""


def picture(m: Measure) -> html.Div:
    """Return the input of a measure with its relevance, and the scale of the colours."""
    tokens = m.tokens
    for info in m.topology.inputs:
        axis = None if tokens is None else token_axis(info, len(tokens))
        if tokens is not None and axis is not None:
            return html.Div([_strip(tokens, _marginal(m, info)), _scale(_marginal(m, info))])
    for info in m.topology.inputs:
        if len(info.shape) == 3:
            heat = _marginal(m, info).sum(0)
            return html.Div([_overlaid(heat, _image(m, info)), _scale(heat)])
    (info, *_) = m.topology.inputs
    return parts.table(m.strongest(info.name, 20))


def _marginal(m: Measure, info: LayerInfo) -> npt.NDArray[np.float64]:
    return np.asarray(m.marginal(info.name, by="neuron"), np.float64)


def _image(m: Measure, info: LayerInfo) -> npt.NDArray[np.float64]:
    value = m.state.values[m.network.values[info.layer_id]][0]
    return grey(stretched(np.moveaxis(value.detach().double().cpu().numpy(), 0, -1)))


def _strip(tokens: Sequence[str], values: npt.NDArray[np.float64]) -> html.P:
    bound = _bound(values)
    return html.P(
        [
            html.Span(tame(token), title=f"{value:.6g}", style=shaded(value / bound))
            for token, value in zip(tokens, values.reshape(len(tokens), -1).sum(1), strict=True)
        ],
        className="strip",
    )


def shaded(share: float) -> dict[str, str]:
    """Return the style of a token whose relevance is this share of the scale's end."""
    red, green, blue = (round(255 * c) for c in OVERLAY(float((share + 1) / 2))[:3])
    opacity = min(1.0, abs(share))
    return {"backgroundColor": f"rgba({red},{green},{blue},{opacity:.3f})"}


def _overlaid(heat: npt.NDArray[np.float64], image: npt.NDArray[np.float64]) -> html.Img:
    step = -(-max(heat.shape) // LARGEST)
    if step > 1:
        heat = _blocks(heat, step)
        image = _blocks(image, step) / step**2
    colours: Any = OVERLAY(np.clip(heat / _bound(heat), -1, 1) / 2 + 0.5)
    below = 0.65 + 0.35 * image[..., None]
    alpha = colours[..., 3:]
    shown = (255 * (alpha * colours[..., :3] + (1 - alpha) * below)).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    return parts.picture(file.getvalue(), "relevance of the input", className="heat")


def _blocks(array: npt.NDArray[np.float64], step: int) -> npt.NDArray[np.float64]:
    padded = np.pad(array, [(0, -n % step) for n in array.shape])
    rows, columns = (n // step for n in padded.shape)
    sums: npt.NDArray[np.float64] = padded.reshape(rows, step, columns, step).sum((1, 3))
    return sums


def _bound(values: npt.NDArray[np.float64]) -> float:
    return float(np.abs(values).max()) or 1.0


def _scale(values: npt.NDArray[np.float64]) -> html.P:
    total, bound = float(values.sum()), _bound(values)
    return parts.note(
        f"The input's neurons hold {total:.4g}; colours run from {-bound:.3g} (blue, against) "
        f"to {bound:.3g} (orange, for)."
    )
