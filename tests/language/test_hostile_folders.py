"""Folders of strangers: none runs code, opens a socket or is read beyond its own files."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from helpers import language_models
from safetensors.torch import save_file

import nrm_graph as ng


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return language_models.save(tmp_path_factory.mktemp("hf") / "sound", "gpt2")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Neither sockets nor processes, whoever asks for them."""

    def refused(*_, **__):
        raise AssertionError("a folder must not reach beyond itself")

    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "getaddrinfo"),
        (socket, "create_connection"),
        (subprocess, "Popen"),
    ):
        monkeypatch.setattr(owner, name, refused)


def change(folder, name="config.json", **values):
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def code(folder):
    """Code that tells that it ran."""
    (folder / "theirs.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(folder / 'ran')!r}).touch()\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class Config(GPT2Config): model_type = 'theirs'\n"
        "class Model(GPT2LMHeadModel): config_class = Config\n"
    )


def auto_map(folder):
    code(folder)
    change(folder, auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"})


def unknown_kind(folder):
    code(folder)
    auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    change(folder, auto_map=auto, model_type="theirs", architectures=["Model"])


def tokenizer_code(folder):
    code(folder)
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Model", None]})


def hidden_code(folder):
    change(folder, text_config={"deep": [{"auto_map": {"AutoConfig": "other/repo--x.Config"}}]})


def generation(folder):
    change(folder, "generation_config.json", custom_generate="theirs/decoding")


def adapter(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')


def quantised(folder):
    change(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def outside(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def absolute(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": str(folder.parent / "secret.safetensors")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_part(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def linked(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")


def linked_settings(folder):
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def other_weights(folder):
    torch.save({"a": torch.ones(2)}, folder / "adapter_model.bin")
    change(folder, transformers_weights="adapter_model.bin")


def tokenizers_outside(folder):
    change(folder, "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.5.0.json"])


def tokenizer_outside(folder):
    change(folder, "tokenizer_config.json", vocab_file="/etc/passwd")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")


def gguf(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(100))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(1000))


def eight_bits(folder):
    save_file({"a": torch.ones(2, dtype=torch.int8)}, folder / "model.safetensors")


def no_config(folder):
    (folder / "config.json").unlink()


def list_config(folder):
    (folder / "config.json").write_text("[1]")


def deep_config(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


def experts(folder):
    change(folder, num_local_experts=8)


def encoder_decoder(folder):
    change(folder, is_encoder_decoder=True, architectures=["BartForConditionalGeneration"])


def pictures(folder):
    change(folder, vision_config={"hidden_size": 4})


def no_head(folder):
    change(folder, architectures=["GPT2Model"])


def no_architecture(folder):
    change(folder, architectures=None)


def other_sizes(folder):
    change(folder, n_embd=32)


def no_weights_of_the_head(folder):
    change(folder, architectures=["GPT2ForSequenceClassification"])


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (auto_map, "names Python code of its own"),
        (unknown_kind, "names Python code of its own"),
        (tokenizer_code, "names Python code of its own"),
        (hidden_code, "names Python code of its own"),
        (generation, "custom_generate"),
        (adapter, "merge it into its model"),
        (quantised, "is quantised"),
        (outside, "that lie in the folder itself"),
        (absolute, "that lie in the folder itself"),
        (missing_part, "lacks the file"),
        (linked, "link that leads out"),
        (linked_settings, "link that leads out"),
        (other_weights, "names another file of weights"),
        (tokenizers_outside, "outside its folder: '../tokenizer"),
        (tokenizer_outside, "outside its folder: '/etc/passwd'"),
        (pickled, r"pytorch_model.bin, which may run code"),
        (gguf, "holds GGUF"),
        (no_weights, "has no weights"),
        (no_safetensors, "is no safetensors file"),
        (eight_bits, "numbers of type I8"),
        (no_config, r"has no config\.json"),
        (list_config, "expected a mapping"),
        (deep_config, "cannot be read as JSON"),
        (experts, "mixture of experts"),
        (encoder_decoder, "encoder-decoder"),
        (pictures, "takes images or sound"),
        (no_head, "is a GPT2Model"),
        (no_architecture, "does not say what the model is"),
        (other_sizes, "cannot be loaded"),
        (no_weights_of_the_head, r"lack score\.weight"),
        (no_tokenizer, "has no tokenizer"),
    ],
)
def test_folders_that_are_refused(folder, spoil, message):
    spoil(folder)
    modules = set(sys.modules)
    with pytest.raises(ng.InputError, match=message) as caught:
        ng.load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()
    assert not any("theirs" in name for name in set(sys.modules) - modules)


def test_a_sound_folder_asks_nobody(folder, monkeypatch):
    from huggingface_hub import constants
    from transformers.integrations import hub_kernels

    before = (constants.HF_HUB_OFFLINE, hub_kernels._kernels_enabled)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    # What a folder asks of the implementation of attention is not looked at.
    change(folder, attn_implementation="kernels-community/flash-attn", _attn_implementation="x/y")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    lm = ng.load_model(f"hf:{folder}")
    assert lm.module.config._attn_implementation == "sdpa"
    assert (constants.HF_HUB_OFFLINE, hub_kernels._kernels_enabled) == before
    assert ng.measure(lm, "The capital").tokens == ("The", " capital")


def test_parts_of_weights(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, chosen in zip(files, (names[:5], names[5:]), strict=True):
        save_file({name: tensors[name] for name in chosen}, folder / file, {"format": "pt"})
    places = {name: files[i >= 5] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    lm = ng.load_model(f"hf:{folder}")
    assert [file.name for file in lm.weights] == files


def test_a_cache_of_the_hub_is_a_folder(folder, tmp_path):
    cache = tmp_path / "models--someone--tiny"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.move(file, cache / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert ng.load_model(f"hf:{snapshot}").family == "gpt2"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", "expected a model such as"),
        ("gpt2", "expected a model such as"),
        ("hf:./no/such/folder", "there is no folder"),
        ("hf:a/b/c", "there is no folder"),
    ],
)
def test_models_that_are_not_there(spec, message):
    with pytest.raises(ng.InputError, match=message):
        ng.load_model(spec)


def test_a_file_is_no_folder(folder, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ng.InputError, match=r"is a file.*GGUF is not read"):
        ng.load_model(f"hf:{tmp_path / 'm.gguf'}")


def test_transformers_is_an_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ng.InputError, match=r"nrm-graph\[language\]"):
        ng.load_model(f"hf:{folder}")


def test_a_name_of_the_hub_is_downloaded_settings_first(folder, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns, constants.HF_HUB_OFFLINE))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lm = ng.load_model("hf:someone/tiny")
    assert (lm.name, lm.local) == ("someone/tiny", False)
    assert [(name, patterns[:1], offline) for name, patterns, offline in asked] == [
        ("someone/tiny", ["*.json"], False)
    ] * 2
    assert not any(pattern.endswith((".bin", ".py")) for _, some, _ in asked for pattern in some)
    asked.clear()
    auto_map(folder)
    with pytest.raises(ng.InputError, match="names Python code"):
        ng.load_model("hf:someone/tiny")
    assert len(asked) == 1  # no weights of what is refused


def test_a_hub_that_does_not_answer(monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(ng.InputError, match=r"hub gives no model of this name \(no network\)"):
        ng.load_model("hf:someone/tiny")
