"""Relevance of token embeddings beside LXT's, for five families of language models.

LXT 2.1 patches the models of older versions of transformers than the package runs with, so there
are two environments and three steps: ``python scripts/lxt_agreement.py FOLDER`` in that of the
package writes seeded models of two layers and their relevance in float64, ``python
scripts/lxt_agreement.py FOLDER attn_lrp`` and ``... cp_lrp`` where LXT is installed (with
transformers 4.52.4) print its largest difference from them, as a share of the largest relevance.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

FAMILIES = ("gpt2", "llama", "bert", "qwen3", "gemma3")
COMPOSITES = ("attn_lrp", "cp_lrp")
TARGET = 7
ROWS = "relevance.npz"


def write(folder: Path) -> None:
    """Save the models, and the package's relevance of their embeddings."""
    import nrm_graph as ng

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers import language_models
    from helpers.transformer_networks import tiny

    layers = {family: {"num_hidden_layers": 2} for family in FAMILIES}
    layers |= {"gpt2": {"n_layer": 2}}
    layers["gemma3"] |= {"layer_types": ["sliding_attention"] * 2}
    rows = {}
    for family in FAMILIES:
        where = language_models.save(folder / family, family, torch.float64, **layers[family])
        lm, text = ng.load_model(f"hf:{where}"), language_models.text(family)
        ids = lm.reader.encode(text).ids
        rows[f"{family}/ids"] = np.array(ids)
        rows[f"{family}/place"] = np.array(
            ids.index(lm.reader.mask) if lm.head == "masked" else len(ids) - 1
        )
        for composite in COMPOSITES:
            rules = tiny(getattr(ng.composites, composite)())
            m = ng.measure(lm, text, target=TARGET, composite=rules, dtype="float64")
            found = m.marginal(m.topology.inputs[0].name, by="neuron")
            rows[f"{family}/{composite}"] = found.reshape(len(ids), -1)
    np.savez(folder / ROWS, **rows)


def patched(family: str, composite: str) -> bool:
    """Put LXT's backward pass in place, if it has one."""
    theirs = importlib.import_module(f"lxt.efficient.models.{family}")
    patches = getattr(theirs, {"attn_lrp": "attnLRP", "cp_lrp": "cp_LRP"}[composite], {})
    for target, patch in patches.items():
        patch(target)
    return bool(patches)


def compare(folder: Path, composite: str) -> None:
    """Print how far LXT's relevance is from that on record."""
    import transformers

    rows = np.load(folder / ROWS)
    for family in FAMILIES:
        if not patched(family, composite):
            continue
        masked = family == "bert"
        kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(
            folder / family, torch_dtype=torch.float64, attn_implementation="eager"
        )
        ids = torch.tensor(rows[f"{family}/ids"])[None]
        embedded = []
        hook = model.get_input_embeddings().register_forward_hook(
            lambda module, _, output, kept=embedded: (
                kept.append(output.detach().requires_grad_(True)) or kept[-1]
            )
        )
        answer = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
        hook.remove()
        logit = answer.logits[0, int(rows[f"{family}/place"]), TARGET]
        (slope,) = torch.autograd.grad(logit, embedded)
        theirs = (embedded[0] * slope / logit)[0].detach().numpy()
        ours = rows[f"{family}/{composite}"]
        print(f"{family} {composite}: {np.abs(theirs - ours).max() / np.abs(ours).max():.1e}")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if len(sys.argv) == 2:
        place.mkdir(exist_ok=True)
        write(place)
    else:
        compare(place, sys.argv[2])
