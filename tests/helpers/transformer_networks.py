"""Small seeded transformers, each returning one row of class scores."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn


class Last(nn.Module):
    """The scores of the last position, from token ids or from embedded vectors."""

    def __init__(self, model: nn.Module, **options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x):
        how = {"inputs_embeds": x} if x.is_floating_point() else {"input_ids": x}
        scores = self.model(**how, **self.options).logits
        return scores[:, -1] if scores.ndim == 3 else scores


def gpt2(**options) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"vocab_size": 19, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config |= {"bos_token_id": 0, "eos_token_id": 0}
    return Last(GPT2LMHeadModel(GPT2Config(**(config | options))), use_cache=False)


def bert(**options) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 2, "num_labels": 4}
    config |= {"num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 8}
    return Last(BertForSequenceClassification(BertConfig(**(config | options))))


def llama(**options) -> nn.Module:
    """RMSNorm, SwiGLU, rotary positions, two query heads for each key head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8}
    return Last(LlamaForCausalLM(LlamaConfig(**(config | options))), use_cache=False)


def vit(**options) -> nn.Module:
    import torchvision

    config = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    config |= {"hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    return torchvision.models.VisionTransformer(**(config | options))


def swin(**options) -> nn.Module:
    """Windows, shifted in every second block; the second stage's are padded."""
    import torchvision

    config = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    config |= {"window_size": [2, 2], "num_classes": 4}
    return torchvision.models.SwinTransformer(**(config | options))


IDS = torch.tensor([[3, 1, 4, 1, 5]])

NETWORKS = {
    "gpt2": (gpt2, "model.transformer.wte"),
    "bert": (bert, "model.bert.embeddings.word_embeddings"),
    "llama": (llama, "model.model.embed_tokens"),
    "vit": (vit, ""),
    "swin": (swin, ""),
}
"""Network and the module whose output is where walks end, if it reads token ids."""


def drawn(name: str, *, biases: bool = True, **options) -> nn.Module:
    """Weights so large that attention is far from even, float64."""
    torch.manual_seed(0)
    net = NETWORKS[name][0](**options).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in net.named_parameters():
            if path.endswith("bias") and not biases:
                parameter.zero_()
            else:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * values)
    return net


def picture(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def tiny(composite, epsilon: float = 1e-14):
    """The same rules with vanishing stabilisers: no oracle has them in the same places."""

    def rule(found):
        names = {field.name for field in dataclasses.fields(found)}
        chosen = names.intersection(("epsilon", "stabilizer"))
        return dataclasses.replace(found, **dict.fromkeys(chosen, epsilon))

    parts = {
        part: tuple((key, rule(found)) for key, found in getattr(composite, part))
        for part in ("kinds", "first", "layers")
    }
    return dataclasses.replace(composite, **parts)
