"""The input with the relevance of its neurons: a heat map, a strip of tokens, or a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from dash import html

from nrm_graph.explorer import parts
from nrm_graph.explorer.pictures import heat_picture
from nrm_graph.explorer.stored_texts import strip
from nrm_graph.measures.reduced.unit_maps import image_of
from nrm_graph.measures.reduced.unit_maps import picture as pictured
from nrm_graph.network.unit_names import token_axis

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.topology import LayerInfo


def picture(m: Measure) -> html.Div:
    """Return the input of a measure with its relevance, and the scale of the colours."""
    sums = token_relevance(m)
    if m.tokens is not None and sums is not None:
        words = strip(m.tokens, sums.tolist(), most=len(m.tokens))
        return html.Div([words, _scale(float(sums.sum()), float(np.abs(sums).max()))])
    info, image = pictured(m.topology), image_of(m)
    if info is None or image is None:
        return parts.table(m.strongest(m.topology.inputs[0].name, 20))
    heat = _marginal(m, info).sum(0)
    drawn = heat_picture(image, heat)
    shown = parts.picture(drawn.png, "relevance of the input", className="heat")
    return html.Div([shown, _scale(float(heat.sum()), drawn.bound)])


def token_relevance(m: Measure) -> npt.NDArray[np.float64] | None:
    """Return the relevance of every token of an input; None where it has none."""
    if m.tokens is None:
        return None
    for info in m.topology.inputs:
        axis = token_axis(info, len(m.tokens))
        if axis is not None:
            by_token = np.moveaxis(_marginal(m, info), axis, 0).reshape(len(m.tokens), -1)
            sums: npt.NDArray[np.float64] = by_token.sum(1)
            return sums
    return None


def _marginal(m: Measure, info: LayerInfo) -> npt.NDArray[np.float64]:
    return np.asarray(m.marginal(info.name, by="neuron"), np.float64)


def _scale(total: float, bound: float) -> html.P:
    return parts.note(
        f"The input's neurons hold {total:.4g}; colours run from {-bound:.3g} (blue, against) "
        f"to {bound:.3g} (orange, for)."
    )
