"""A language model as a network of one row of outputs, for texts of any length.

What is traced answers for the text's own place: a causal model at its last position, a masked
model at its mask token, a classifier as it pools.  The hidden states of that place are taken
*before* the head, so that nothing as large as positions times vocabulary is ever computed.
Positions and types are handed over as constants, whatever the model would compute them from.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nrm_graph.language.heads import CAUSAL, CLASSIFICATION, MASKED

if TYPE_CHECKING:
    from collections.abc import Iterator


class OneRow(nn.Module):
    """One row of outputs a text: logits of all tokens at its place, or of all classes.

    The children are the model's own, under their own names, so that its layers and weights keep
    the names of its ``state_dict()``.

    Parameters
    ----------
    model : nn.Module
        Of transformers, with a head.
    head : "causal", "masked" or "classification"
        What it answers.
    mask : int or None
        Id of a masked model's mask token.
    """

    _whole: Any
    _head: str
    _mask: int | None
    _pad: int | None

    def __init__(self, model: nn.Module, head: str, mask: int | None) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        config: Any = model.config
        # Beside torch's own bookkeeping: the model is no child, for this has the same ones, and
        # a child of it may have any name.
        self.__dict__ |= {
            "_whole": model,
            "_head": head,
            "_mask": mask,
            "_pad": config.get_text_config().pad_token_id,
            "training": False,
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of one place of every text; 0 in the mask is padding, on the right."""
        model = self._whole
        length = input_ids.shape[1]
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            **constants(model, length, input_ids.device),
        }
        scored = self._head == CLASSIFICATION and hasattr(model, "score")
        if self._head == CLASSIFICATION and not scored:
            return _logits(model, arguments)
        place = self._place(input_ids, attention_mask)
        if scored:  # of the last token, as a causal model reads; its own asks for a padding token
            hidden = model.base_model(**arguments).last_hidden_state
            scores: Tensor = model.score(_row(hidden, place))
            return scores[:, 0]
        with _answering(model.base_model, place):
            return _logits(model, arguments)[:, 0]

    def _place(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Position of every text that is answered for."""
        if self._head == MASKED:
            hidden = torch.eq(input_ids, self._mask or 0)
            return hidden.to(torch.int64).argmax(1)
        if self._head == CAUSAL or self._pad is None:
            return attention_mask.sum(1) - 1
        counted = attention_mask * (input_ids != self._pad)
        return (torch.arange(input_ids.shape[1], device=input_ids.device) * counted).argmax(1)


def constants(model: Any, length: int, device: torch.device) -> dict[str, Any]:
    """Arguments of a model that are the same for all texts: positions and types, no cache.

    Parameters
    ----------
    model : nn.Module
        Of transformers.
    length : int
        Positions of a text.
    device : torch.device
        Where to compute.
    """
    takes = inspect.signature(model.base_model.forward).parameters
    given: dict[str, Any] = {}
    if "position_ids" in takes:
        given["position_ids"] = torch.arange(length, device=device)[None] + first_position(model)
    # Some models (GPT-2) have no types, and would look token_type_ids up among their tokens.
    if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", None):
        given["token_type_ids"] = torch.zeros(1, length, dtype=torch.int64, device=device)
    if "use_cache" in takes or "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    return given


def first_position(model: Any) -> int:
    """Return the number of the first position: RoBERTa's kin count from behind the padding's."""
    for module in model.base_model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0


def longest(model: Any) -> int | None:
    """Positions that a model knows; None if it does not say."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    return None if not isinstance(most, int) or most < 1 else most - first_position(model)


def _logits(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Answer of the model itself; called as no module, for it is none of the network's."""
    logits: Tensor = model.forward(**arguments).logits
    return logits


def _row(hidden: Tensor, place: Tensor) -> Tensor:
    """Hidden states of one place of every text, ``(N, 1, features)``."""
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[-1]))


@contextlib.contextmanager
def _answering(base: nn.Module, place: Tensor) -> Iterator[None]:
    """Let the body of a model give the hidden states of one place alone to its head."""

    def chosen(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_row(output[0], place), *output[1:])
        output.last_hidden_state = _row(output.last_hidden_state, place)
        return output

    hook = base.register_forward_hook(chosen)
    try:
        yield
    finally:
        hook.remove()
