"""Folders of language models of every promised family, one layer each, with a tokenizer."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = (
    "The capital of France is Paris",
    "The capital of Italy is Rome",
    "London is the capital of England and Paris is not",
    "A cat sat on the mat while the dog slept in London",
    "When Mary and John went to the store John gave a drink to Mary",
)
_BODY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
_DECODER = _BODY | {"num_key_value_heads": 1, "head_dim": 8}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "bytes",
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "bytes", _BODY),
    "llama": ("LlamaForCausalLM", "spaces", _DECODER),
    "mistral": ("MistralForCausalLM", "spaces", _DECODER | {"sliding_window": 3}),
    "qwen3": ("Qwen3ForCausalLM", "bytes", _DECODER),
    "gemma3": (
        "Gemma3ForCausalLM",
        "spaces",
        _DECODER
        | {"sliding_window": 3, "layer_types": ["sliding_attention"], "query_pre_attn_scalar": 8},
    ),
    "bert": ("BertForMaskedLM", "words", _BODY),
    "roberta": ("RobertaForMaskedLM", "bytes+mask", _BODY | {"max_position_embeddings": 34}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "words",
        {
            "dim": 16,
            "n_layers": 1,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 32,
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "bytes+mask",
        _BODY | {"local_attention": 4, "layer_types": ["sliding_attention"]},
    ),
}
"""Class, kind of tokenizer and sizes."""

MASKED = ("bert", "roberta", "distilbert", "modernbert")


@functools.cache
def tokenizer(kind: str) -> Any:
    """A tokenizer trained on a few sentences, of one of the kinds that the families have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer, WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "words":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        named = {f"{name[1:-1].lower()}_token": name for name in special}
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = WordPieceTrainer(vocab_size=180, special_tokens=special, show_progress=False)
    else:
        if kind == "bytes+mask":
            special, named = [*special, "<mask>"], named | {"mask_token": "<mask>"}
        made = Tokenizer(models.BPE(unk_token="<unk>" if kind == "spaces" else None))
        alphabet: list[str] = []
        if kind == "spaces":
            made.pre_tokenizer = pre_tokenizers.Metaspace()
            made.decoder = decoders.Metaspace()
        else:
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=alphabet,
        )
    made.train_from_iterator(SENTENCES * 3, trainer)
    ends = {"words": ("[CLS]", "[SEP]"), "bytes+mask": ("<s>", "</s>"), "spaces": ("<s>", None)}
    if kind in ends:
        first, last = ends[kind]
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}" if last else f"{first} $A",
            special_tokens=[(name, special.index(name)) for name in (first, last) if name],
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def model(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A seeded model whose attention is far from even."""
    import transformers

    name, kind, sizes = FAMILIES[family]
    name, seed = options.pop("cls", name), options.pop("seed", 0)
    words = tokenizer(kind)
    special = {
        f"{part}_token_id": getattr(words, f"{part}_token_id")
        for part in ("pad", "bos", "eos", "cls", "sep")
    }
    cls = getattr(transformers, name)
    config = cls.config_class(vocab_size=len(words), **(special | sizes | options))
    torch.manual_seed(seed)
    made = cls(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype)


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write a model and its tokenizer as transformers does."""
    model(family, dtype, **options).save_pretrained(folder)
    tokenizer(FAMILIES[family][1]).save_pretrained(folder)
    return folder


def text(family: str) -> str:
    """A short text; of a masked model with its mask token."""
    if family not in MASKED:
        return "The capital of France is"
    return f"The capital of France is {tokenizer(FAMILIES[family][1]).mask_token}"
