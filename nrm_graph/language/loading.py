"""Load a language model by the name of its folder, or of the hub; no code of it is run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, first_line
from nrm_graph.foreign_errors import translated
from nrm_graph.language import folder
from nrm_graph.language.heads import CLASSES, CLASSIFICATION, MASKED, head_of
from nrm_graph.language.language_model import LanguageModel
from nrm_graph.language.libraries import quiet, transformers
from nrm_graph.language.one_row import longest
from nrm_graph.language.tokens import Reader

if TYPE_CHECKING:
    from torch import nn

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


@translated("loading a language model")
def load_model(spec: str) -> LanguageModel:
    """Load a language model that takes text.

    Parameters
    ----------
    spec : str
        ``hf:FOLDER``, a folder as ``save_pretrained`` of transformers writes it, or ``hf:NAME``, a
        model of the Hugging Face hub, which is downloaded once.

    Returns
    -------
    LanguageModel
        For :func:`nrm_graph.measure` and :func:`nrm_graph.extract`.  Causal models explain the
        next token, masked ones the token in the place of the mask, classifiers a class.

    Raises
    ------
    InputError
        If there is no such model, or it is of a kind that is not loaded; the message says why.

    Notes
    -----
    Nothing of a folder is run: code of its own, pickled weights, adapters and quantised weights
    are refused, and a folder is read without asking the hub for anything.
    """
    where = place_of(spec)
    local = Path(where).expanduser()
    is_local = local.exists()
    found = folder.checked(local if is_local else _downloaded(where))
    with quiet(offline=True) as library:
        head = head_of(found.config, where)
        module = _module(library, found, head)
        tokenizer = _tokenizer(library, found)
    if head == MASKED and tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {where} has no mask token, which a masked model needs")
    reader = _reader(module, tokenizer, head)
    return LanguageModel(
        module, reader, head, str(found.config["model_type"]), where, found.weights, is_local
    )


def check_place(spec: str) -> None:
    """Refuse what ``hf:...`` cannot load, before anything is read that takes long.

    Raises
    ------
    InputError
        Saying what is missing, or of which kind it is.
    """
    where = place_of(spec)
    local = Path(where).expanduser()
    if local.exists():
        head_of(folder.checked(local).config, where)


def place_of(spec: str) -> str:
    """Return the folder or name that ``hf:...`` names; nothing is loaded.

    Raises
    ------
    InputError
        If it names none.
    """
    where = spec.removeprefix(folder.PREFIX) if isinstance(spec, str) else ""
    if not where or where == spec:
        raise InputError(f"expected a model such as 'hf:FOLDER' or 'hf:NAME', found {spec!r:.100}")
    transformers()
    if not Path(where).expanduser().exists() and not _HUB_NAME.fullmatch(where):
        raise InputError(
            f"there is no folder {where!r:.200}, and it is no name of a model of the hub "
            "(OWNER/NAME)"
        )
    return where


def _downloaded(name: str) -> Path:
    """Folder of a model of the hub: its settings first, so that a refusal costs nothing."""
    hub = importlib.import_module("huggingface_hub")
    with quiet(offline=False):
        try:
            settings = Path(hub.snapshot_download(name, allow_patterns=["*.json"]))
            names = [entry.name for entry in settings.iterdir()]
            head_of(folder.checked_settings(settings, names), name)
            return Path(hub.snapshot_download(name, allow_patterns=_FILES))
        except InputError:
            raise
        except Exception as error:  # the hub's client raises many kinds
            raise InputError(
                f"there is no folder {name!r}, and the hub gives no model of this name "
                f"({first_line(error)[:200]})"
            ) from error


def _module(library: Any, found: folder.Folder, head: str) -> nn.Module:
    """Build the model of a folder, and load its weights.

    Raises
    ------
    InputError
        If the weights are not those of the model, or some are missing.
    """
    kind = getattr(library, CLASSES[head])
    config = library.AutoConfig.from_pretrained(
        str(found.path), local_files_only=True, trust_remote_code=False
    )
    for attention in ("sdpa", "eager"):
        try:
            module, told = kind.from_pretrained(
                str(found.path),
                config=config,
                dtype="auto",
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            break
        except Exception as error:
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            raise InputError(
                f"the weights in {found.path} cannot be loaded: {first_line(error)[:200]}"
            ) from error
    lacking = sorted(map(str, told["missing_keys"]))
    if lacking:
        raise InputError(
            f"the weights in {found.path} lack {', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}: expected a model that has its head"
        )
    module.requires_grad_(False)
    return module.eval()  # type: ignore[no-any-return]


def _tokenizer(library: Any, found: folder.Folder) -> Any:
    """Load the tokenizer of a folder.

    Raises
    ------
    InputError
        If there is none that is fast.
    """
    if not any((found.path / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            f"{found.path} has no tokenizer: expected tokenizer.json beside the model "
            "(tokenizer.save_pretrained writes it)"
        )
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(found.path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise InputError(
            f"the tokenizer in {found.path} cannot be loaded ({first_line(error)[:200]}): save "
            "it beside the model (tokenizer.save_pretrained)"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer in {found.path} is none of the library tokenizers: expected "
            "tokenizer.json (a fast tokenizer's save_pretrained writes it)"
        )
    return tokenizer


def _reader(module: Any, tokenizer: Any, head: str) -> Reader:
    config = module.config.get_text_config()
    vocabulary = int(module.get_input_embeddings().num_embeddings)
    classes, outputs = None, vocabulary
    if head == CLASSIFICATION:
        names = module.config.id2label
        classes = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(module.config.num_labels))
        outputs = len(classes)
    else:
        last = module.get_output_embeddings()
        outputs = vocabulary if last is None else int(last.weight.shape[0])
    pads = (config.pad_token_id, tokenizer.pad_token_id, 0)
    pad = next(int(p) for p in pads if p is not None and 0 <= p < vocabulary)
    return Reader(tokenizer, head, vocabulary, outputs, longest(module), pad, classes)
