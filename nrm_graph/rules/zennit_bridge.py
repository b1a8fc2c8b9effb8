"""Composites of zennit as composites of this package, known by the names of their classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any

from torch import nn

from nrm_graph.errors import CompositeError
from nrm_graph.rules.attention import Pass
from nrm_graph.rules.composite import Composite, composite
from nrm_graph.rules.linear import Epsilon, Norm
from nrm_graph.rules.zennit_rules import described, is_zennit, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nrm_graph.rules.base import Rule


class _Sum:
    """Stands for zennit's own module that sums."""


_MODULES: Mapping[str, str] = {
    "convolution": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "dense": "Linear",
    "average": "AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d",
    "batch_norm": "BatchNorm1d BatchNorm2d BatchNorm3d",
    "activation": "ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid Mish PReLU "
    "ReLU ReLU6 RReLU SELU CELU GELU Sigmoid SiLU Softplus Softshrink Softsign Tanh Tanhshrink "
    "Threshold Dropout Dropout1d Dropout2d Dropout3d AlphaDropout Identity",
    "max pooling": "MaxPool1d MaxPool2d MaxPool3d "
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d",
    "normalisation": "LayerNorm GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d",
}
"""Classes of torch.nn that a map of zennit may name, by what they are here."""

_KINDS: tuple[tuple[type, str], ...] = (
    (_Sum, "sum"),
    *((getattr(nn, name), kind) for kind, names in _MODULES.items() for name in names.split()),
)

_REASONS: Mapping[str, str] = {
    "convolution": "Pass is for what is elementwise: give it Epsilon or another rule",
    "dense": "Pass is for what is elementwise: give it Epsilon or another rule",
    "sum": "sums take Norm or Epsilon",
    "average": "average pooling takes Norm or Epsilon, whose numbers are zennit's",
    "batch_norm": "batch norms take Pass, as in zennit's own composites: folded ones have "
    "no rule here",
    "activation": "activations pass relevance on unchanged here: give them zennit's Pass, or none",
    "max pooling": "max pooling gives relevance to its winner here: leave it out",
    "normalisation": "zennit differentiates a norm with its spread, which is held constant here: "
    "leave it out, and take ng.composites.composite(...) for other rules than Epsilon",
}

_FORMS = (
    "LayerMapComposite",
    "SpecialFirstLayerMapComposite",
    "NameMapComposite",
    "MixedComposite",
    "NameLayerMapComposite",
)

_MERGING = ("MergeBatchNorm", "SequentialMergeBatchNorm", "NamedMergeBatchNorm")


@dataclass(frozen=True)
class _Entry:
    """A row of a map of zennit: classes of modules, those of the first one, or names."""

    by: str
    keys: tuple[Any, ...]
    hook: object


def from_zennit(chosen: object) -> Composite:
    """Translate a composite of zennit, by its rules and their parameters.

    zennit's named composites do, and those that are made of ``LayerMapComposite``,
    ``SpecialFirstLayerMapComposite``, ``NameMapComposite``, ``NameLayerMapComposite`` and
    ``MixedComposite``.  zennit itself is not needed: its objects are read, and none of its code is
    run.

    Parameters
    ----------
    chosen : zennit.core.Composite
        The composite, such as ``zennit.composites.EpsilonPlus()``.

    Returns
    -------
    Composite
        Named ``zennit.EpsilonPlus``, to be passed as ``composite=``.

    Raises
    ------
    CompositeError
        If a part has no counterpart here: rules that change gradients (``DeconvNet``,
        ``GuidedBackprop``, ``BetaSmooth``), stabilizers that are no plain number, bounds that
        differ by pixel, other parameters than biases in ``zero_params``, classes or canonizers of
        your own, or two rules for what is one kind of layer here.

    Notes
    -----
    Relevance is that of zennit, for a seed of 1 at the target, where the following is the same:

    * zennit gives rules to modules, this package to operations: ``x + y``, ``F.conv2d`` and
      ``x.mean(1)`` have the rule of their kind, where zennit takes the gradient.
    * A map that names some classes of convolutions (``Conv2d``) gives their rule to all.
    * A batch norm behind a convolution or a dense layer is folded into it, as zennit's canonizers
      do (which leave a factor of 1 / sqrt(1 + eps) behind); those canonizers, and those that make
      modules of the sums of torchvision's networks, are not needed, and left aside.  Other batch
      norms get zennit's Pass.
    * ``first_map`` is for layers that read an input directly, in zennit for the first module that
      fits.
    * Activations pass relevance on unchanged; where zennit has no rule for them
      (``ExcitationBackprop``), it takes their gradient, which is the same for ReLU.
    * ``zero_params="bias"`` stays with its rule.  ``bias="ignored"`` goes further (see
      ``docs/concepts.md``): constants in sums are left out, too, and Gamma tells its two cases by
      the output without its bias.
    * Kinds of layers that zennit's maps do not name have the rules of :func:`composite`: Norm for
      sums, averages and interpolation, Epsilon for norms, Pass for RMSNorm, Uniform for products of
      two values; a convolution or dense layer without a rule is refused when a network is met, and
      so is attention, which ``attn_lrp``, ``cp_lrp`` and ``relp`` are for.  Walks end in
      embeddings.
    * Layers of a ``NameMapComposite`` have zennit's rule whatever they are; names that no layer has
      are refused when a network is met.

    Examples
    --------
    ``ng.extract(net, data, path, composite=ng.composites.from_zennit(EpsilonPlusFlat()))``
    """
    entries = tuple(_entries(chosen))
    by = [entry.by for entry in entries]
    if "name" in by and by != sorted(by, key=lambda name: name != "name"):
        raise CompositeError(
            "zennit's MixedComposite asks for classes before names: names come first here; put its "
            "NameMapComposite first"
        )
    layers, kinds, first = _by_name(entries), _by_kind(entries, "type"), _by_kind(entries, "first")
    passed = any(_matches(nn.ReLU, key) for e in entries if e.by == "type" for key in e.keys)
    for name, rule in (*kinds.items(), *layers.items()):
        if not (rule.proportional or passed):
            raise CompositeError(
                f"the rule {type(rule).__name__} of {name!r} gives relevance to neurons that an "
                "activation has silenced, and zennit's composite has no rule for activations: add "
                "(zennit.types.Activation, zennit.rules.Pass()) to its layer_map"
            )
    return composite(f"zennit.{type(chosen).__qualname__}", kinds, first=first, layers=layers)


def _entries(chosen: object) -> Iterator[_Entry]:
    """Rows of a composite's maps, in the order in which zennit asks them."""
    facts = _facts(chosen)
    for canonizer in facts.get("canonizers") or ():
        _check_canonizer(canonizer)
    if "composites" in facts:
        for part in facts["composites"]:
            yield from _entries(part)
    for names, hook in facts.get("name_map") or ():
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise CompositeError(
                "zennit's NameMapComposite takes tuples of names such as ('conv1',), found "
                f"{names!r}: of a text it would take every name that is a part of it"
            )
        yield _Entry("name", tuple(names), hook)
    for by, table in (("first", "first_map"), ("type", "layer_map")):
        for types, hook in facts.get(table) or ():
            yield _Entry(by, tuple(_flat(types)), hook)


def _facts(chosen: object) -> Mapping[str, Any]:
    """Attributes of a composite that chooses rules as zennit's own do."""
    cls = type(chosen)
    form = next((c for c in cls.__mro__ if is_zennit(c, "composites", *_FORMS)), None)
    if form is None or isinstance(chosen, type):
        plain = is_zennit(cls, "core", "Composite")
        wanted = "one that is made of maps" if plain else "a composite of zennit, as an object"
        raise CompositeError(
            f"expected {wanted} ({', '.join(_FORMS)}), found {described(chosen)}; "
            "ng.composites.composite(...) takes rules by kind of layer"
        )
    facts = vars(chosen)
    choose = facts.get("module_map")
    function = getattr(choose, "__func__", None)
    own = getattr(function, "__module__", None) == "zennit.composites"
    if not own or getattr(choose, "__self__", None) is not chosen:
        raise CompositeError(
            f"{described(chosen)} chooses rules by a function of its own: expected maps alone; "
            "ng.composites.composite(...) takes rules by kind of layer and by name"
        )
    return facts


def _check_canonizer(canonizer: object) -> None:
    """Refuse what changes a network before rules are given to it, unless it is done here, too."""
    cls = type(canonizer)
    if is_zennit(cls, "canonizers", *_MERGING) or cls.__module__ == "zennit.torchvision":
        return
    if not is_zennit(cls, "canonizers", "CompositeCanonizer"):
        raise CompositeError(
            f"{described(canonizer)} changes the network in a way that is not known here: change "
            "it before it is traced, and build the composite without this canonizer"
        )
    for part in vars(canonizer).get("canonizers") or ():
        _check_canonizer(part)


def _flat(types: object) -> Iterator[type]:
    """Classes that the second argument of isinstance stands for."""
    if isinstance(types, tuple | UnionType):
        for part in types if isinstance(types, tuple) else types.__args__:
            yield from _flat(part)
    elif (
        not isinstance(types, type)
        or types is nn.Module
        or not any(_matches(module, types) for module, _ in _KINDS)
    ):
        raise CompositeError(
            f"zennit's composite has a rule for {described(types)}, which is no kind of layer "
            "here: leave it out, or name such layers in a NameMapComposite"
        )
    else:
        yield types


def _matches(module: type, chosen: type) -> bool:
    """Whether a module of a class would be an instance of a class that zennit's map names."""
    if module is _Sum:
        return is_zennit(chosen, "layer", "Sum")
    parts: Iterable[type] = ()
    if type(chosen).__module__ == "zennit.types":
        parts = vars(chosen).get("__subclass__", ())
    return chosen in module.__mro__ or any(_matches(module, part) for part in parts)


def _by_name(entries: Sequence[_Entry]) -> dict[str, Rule]:
    """Rules by pattern of a layer's name, of which zennit takes the first."""
    rules: dict[str, Rule] = {}
    for entry in entries:
        if entry.by != "name":
            continue
        rule = rule_of(entry.hook)
        if isinstance(rule, Pass):
            raise CompositeError(
                f"zennit's NameMapComposite gives Pass to {', '.join(map(str, entry.keys))}: what "
                "is no layer, such as an activation, passes relevance on here without a rule; "
                "leave it out"
            )
        for name in entry.keys:
            rules.setdefault(re.sub(r"([*?[])", r"[\1]", name), rule)
    return rules


def _by_kind(entries: Sequence[_Entry], by: str) -> dict[str, Rule]:
    """Rules by kind of layer, of all layers (``type``) or those that read an input (``first``)."""
    rules: dict[str, Rule] = {}
    given: dict[str, str] = {}
    for module, kind in _KINDS:
        asked = (entry for entry in entries if entry.by in ("type", by))
        fitting = (e for e in asked if any(_matches(module, key) for key in e.keys))
        entry = next(fitting, None)
        if entry is None or entry.by != by:
            continue
        rule = rule_of(entry.hook, kind)
        _check_kind(kind, module.__name__, rule)
        if kind == "activation":  # no layer
            continue
        if rules.setdefault(kind, rule) != rule:
            raise CompositeError(
                f"zennit's composite has {rules[kind]} for {given[kind]} and {rule} for "
                f"{module.__name__}, which are one kind of layer here, {kind}: give both one rule, "
                "or name the layers of one of them in a NameMapComposite"
            )
        given.setdefault(kind, module.__name__)
    return rules


def _check_kind(kind: str, name: str, rule: Rule) -> None:
    """Refuse a rule whose numbers would be others than zennit's, or that has none."""
    if kind in ("convolution", "dense"):
        fits = not isinstance(rule, Pass)
    elif kind in ("batch_norm", "activation"):
        fits = isinstance(rule, Pass)
    else:
        fits = isinstance(rule, Norm | Epsilon) and kind in ("sum", "average")
    if not fits:
        raise CompositeError(
            f"zennit's composite has the rule {type(rule).__name__} for {name.strip('_')}: "
            f"{_REASONS[kind]}"
        )
