"""What a model answers with, by its settings: the next token, a hidden token, or a class."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

CAUSAL, MASKED, CLASSIFICATION = "causal", "masked", "classification"

_MAPPINGS = {
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    MASKED: "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    CLASSIFICATION: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
CLASSES = {
    CAUSAL: "AutoModelForCausalLM",
    MASKED: "AutoModelForMaskedLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
}
"""Classes of transformers that load each."""

_EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_moe_experts",
)


def head_of(config: Mapping[str, Any], where: str) -> str:
    """Head of a model, by the content of its ``config.json``.

    Parameters
    ----------
    config : mapping
        Content of ``config.json``.
    where : str
        What to call the model in messages.

    Returns
    -------
    "causal", "masked" or "classification"

    Raises
    ------
    InputError
        If it is none of them, or of a kind that is not explained.
    """
    listed = config.get("architectures")
    listed = listed if isinstance(listed, list) else []
    name = next((entry for entry in listed if isinstance(entry, str)), None)
    family = config.get("model_type")
    if name is None or not isinstance(family, str):
        raise InputError(
            f"the config.json of {where} does not say what the model is: expected model_type and "
            "architectures, as save_pretrained writes them"
        )
    _refuse_kinds(config, name, where)
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for head, mapping in _MAPPINGS.items():
        known = getattr(auto, mapping).get(family, ())
        if name in ((known,) if isinstance(known, str) else known):
            return head
    raise InputError(
        f"{where} is a {name} ({family}), expected a causal or masked language model or a "
        "classifier of texts that transformers has itself (...ForCausalLM, ...LMHeadModel, "
        "...ForMaskedLM, ...ForSequenceClassification)"
    )


def _refuse_kinds(config: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse models whose answer is more than one text's own."""
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{where} is an encoder-decoder ({name}): its answer depends on a second text, which "
            "it wrote itself; expected a causal or masked model or a classifier"
        )
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in _EXPERTS:
            count = part.get(key)
            if isinstance(count, int) and count > 1:
                raise InputError(
                    f"{where} is a mixture of experts ({key} is {count}): which experts compute "
                    "depends on the input, and no traced program can say so; expected a dense model"
                )
    if "vision_config" in config or "audio_config" in config:
        raise InputError(
            f"{where} takes images or sound beside text ({name}): expected a model of text alone, "
            "such as its text part saved by itself"
        )
