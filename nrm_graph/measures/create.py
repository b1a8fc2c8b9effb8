"""Measures of a model and an input, without a store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nrm_graph.errors import InputError
from nrm_graph.foreign_errors import translated
from nrm_graph.language.aims import aim_of
from nrm_graph.language.language_model import LanguageModel
from nrm_graph.language.tokens import TokenTexts
from nrm_graph.measures.event_passes import MEMORY
from nrm_graph.measures.measure import Measure
from nrm_graph.network import units
from nrm_graph.network.device import device_of
from nrm_graph.network.ir.input_spec import input_spec, precision
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.token_texts import check_texts, checked_tokens
from nrm_graph.network.tracing.given_program import program_of
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_weights import (
    Target,
    initial_relevance,
    named_outputs,
    output_weights,
)
from nrm_graph.rules import composites

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.tracing.output_choice import Choice
    from nrm_graph.network.units import Resolution
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.rules.composites import Composite


@translated("measuring")
def measure(
    model: torch.nn.Module | Program | LanguageModel,
    x: Inputs | str,
    *,
    target: Target = "predicted",
    against: str | int | None = None,
    composite: str | Composite | None = None,
    bias: str | None = None,
    resolution: str | Mapping[str, Resolution] = "auto",
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    scale: str = "unit",
    memory: int = MEMORY,
    tokens: Sequence[str] | None = None,
    output: Choice = None,
) -> Measure:
    """Return the relevance measure of one input, without a store.

    Parameters
    ----------
    model : nn.Module, ExportedProgram, Program or LanguageModel
        The network, in any mode.  A program, of :func:`nrm_graph.trace`,
        :func:`nrm_graph.load_program` or ``db.program``, is not traced again.  What forward does
        to buffers that its output does not depend on is left aside.  A language model, of
        :func:`nrm_graph.load_model`, takes text.
    x : Tensor, a tuple or mapping of tensors for a network of several inputs, or text
        One input; what ``model(x)`` answers for it as given tells whether its first axis is a
        batch axis of 1.  Tuples in the order of forward's arguments, mappings by their names.
        Whole numbers that the network takes as such (token ids, masks) stay what they are,
        anything else is cast to the network's dtype.
    target : "predicted", int, tuple, or mapping of int or tuple to float
        Output to explain, or signed weights over outputs.  Where the output has several axes, a
        tuple says the place: ``(-1, 464)`` is class 464 at the last position, ``(-1,
        "predicted")`` the largest one there.  Where the network returns several tensors it begins
        with the name of one: ``("logits", -1, 464)``.  Of a language model: the text or id of a
        token (``" Paris"``), the name or number of a class, or weights of these.
    against : str or int, optional
        Of a language model: the token or class that the target is compared with; the difference
        of the two outputs is explained.
    composite : str or Composite, optional
        Rules, by name or built with :mod:`nrm_graph.rules.composites`; ``attn_lrp`` of a language
        model and ``epsilon_gamma`` of all others by default.
    bias : "absorbed" or "ignored", optional
        Whether biases and constants take their share of relevance, or are left out so that neurons
        carry the whole; the composite's own by default (``absorbed``, of most).
    resolution : str or mapping
        Units of the tables, see :func:`nrm_graph.network.units.resolve`.  Events do not depend on
        it.
    dtype : "float32", "float64" or None
        Precision of the pass; None keeps the model's, or takes float32 below that.
    device : str or torch.device
        Where to compute.
    scale : "unit" or "logit"
        Multiply every relevance by 1 or by the target's logit (the customary LRP scale).
    memory : int
        Bytes that events asked together may hold at once.
    tokens : sequence of str, optional
        Text of every position of the input, for graphs and pictures.
    output : str, int, or list of them, optional
        Of a network that returns several tensors, the one to explain, by its key or position;
        several make one layer, side by side.

    Raises
    ------
    TraceError, CompositeError, InputError
        If the model, composite, input or target cannot be used.

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> m = ng.measure(net, torch.ones(1, 3), target=0, composite="epsilon", dtype="float64")
    >>> A = ng.Layer("0")[:2]
    >>> round(m(A) + m(~A), 9)
    1.0
    """
    check_options(dtype, scale, memory)
    if isinstance(model, LanguageModel):
        _refuse_beside_text(tokens, output)
        target = aim_of(model.reader, target, against)
    elif against is not None:
        raise InputError(
            "against= is for language models (ng.load_model): give weights such as {3: 1, 5: -1} "
            "as target"
        )
    named_outputs(target)
    if tokens is not None:
        check_texts(tokens)
    fitting = "attn_lrp" if isinstance(model, LanguageModel) else composites.DEFAULT
    rules = composites.get(fitting if composite is None else composite, bias)
    units.check(resolution)
    place = device_of(device)
    classes: Sequence[str] | None = None
    if isinstance(model, LanguageModel):
        text = model.reader.encode(x)
        tokens, classes = text.tokens, TokenTexts(model.reader)
        length = len(text.ids)
        program, xs = program_of(
            model.program(length), text.inputs(length, model.reader.pad), output
        )
    elif isinstance(x, str):
        raise InputError(
            "x is text, which language models take: load one with ng.load_model('hf:...')"
        )
    else:
        program, xs = program_of(model, x, output)
    kind = precision(program) if dtype is None else getattr(torch, dtype)
    if dtype is None and any(t.is_floating_point() for t in xs):
        # The caller's own, whatever the program was stored in.
        kind = torch.float64 if any(t.dtype == torch.float64 for t in xs) else torch.float32
    net = prepared_network.network(program, rules, kind, place)
    one = tuple(t.detach().to(place).contiguous() for t in input_spec(program).samples(xs, kind))
    named = checked_tokens(net.layout.topology, tokens)
    return from_network(net, one, target, resolution, scale, memory, named, classes)


def _refuse_beside_text(tokens: Sequence[str] | None, output: Choice) -> None:
    """Refuse what a language model says by itself."""
    if tokens is not None or output is not None:
        given = "tokens=" if tokens is not None else "output="
        raise InputError(f"a language model takes text, which says it all: leave {given} out")


def check_options(dtype: str | None, scale: str, memory: int) -> None:
    """Refuse options of a measure that are unknown.

    Raises
    ------
    InputError
        Naming what is expected.
    """
    if dtype not in (None, "float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', found {dtype!r}")
    if scale not in ("unit", "logit"):
        raise InputError(f"scale must be 'unit' or 'logit', found {scale!r}")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise InputError(f"memory must be a positive number of bytes, found {memory!r}")


def from_network(
    net: Network,
    x: Inputs,
    target: Target,
    resolution: str | Mapping[str, Resolution] = "auto",
    scale: str = "unit",
    memory: int = MEMORY,
    tokens: tuple[str, ...] | None = None,
    classes: Sequence[str] | None = None,
) -> Measure:
    """Build the measure of one input, batches of one, from a prepared network."""
    partitions = units.resolve(net.layout.topology, resolution)
    state = forward(net, x)
    outputs = outputs_of(net.program)
    weights = output_weights(target, state.output.cpu().double(), outputs)
    start = initial_relevance(state, weights.to(state.output))
    logit = float((weights.to(state.output) * state.output).sum())
    if not math.isfinite(logit):
        raise InputError(f"the weighted sum of the target outputs is {logit}: smaller weights do")
    chosen = weights[0].nonzero().flatten().tolist()
    single = len(chosen) == 1 and float(weights[0, chosen[0]]) == 1.0
    partitions = units.with_outputs(partitions, outputs.names(classes, chosen))
    return Measure(
        net,
        state,
        partitions,
        start,
        weights,
        chosen[0] if single else None,
        logit,
        int(state.output.argmax()),
        logit if scale == "logit" else 1.0,
        memory,
        tokens=tokens,
        classes=classes,
    )
