"""The network and the images that the package ships for the demo."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch
from helpers.processes import ROOT
from safetensors import safe_open
from torch import nn

from nrm_graph.cli.demo.fashion_cnn import CLASSES, fashion_cnn, load_demo

pytestmark = pytest.mark.smoke

DATA = files("nrm_graph").joinpath("data")


@pytest.fixture(scope="module")
def demo():
    return load_demo()


def test_accuracy_on_the_shipped_images(demo):
    """The network gets 296 of the 320 shipped images right: 92.5 %."""
    model, inputs = demo
    with torch.inference_mode():
        predicted = model(torch.stack([item["input"] for item in inputs])).argmax(1)
    right = sum(CLASSES[p] == item["label"] for p, item in zip(predicted, inputs, strict=True))
    assert right / len(inputs) > 0.85, f"{right} of {len(inputs)} right"


def test_inputs(demo):
    _, inputs = demo
    for item in inputs:
        assert item.keys() == {"input", "key", "label"}
        assert item["input"].shape == (1, 28, 28)
        assert item["input"].dtype == torch.float32
    pixels = torch.stack([item["input"] for item in inputs])
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_every_class_has_32_images(demo):
    _, inputs = demo
    assert len(set(CLASSES)) == 10
    assert Counter(item["label"] for item in inputs) == dict.fromkeys(CLASSES, 32)


def test_keys_are_unique_and_in_test_set_order(demo):
    _, inputs = demo
    keys = [item["key"] for item in inputs]
    assert keys == sorted(set(keys))
    assert keys[0] == "test-00000"
    assert all(len(key) == len("test-00000") for key in keys)


def test_inputs_do_not_share_memory(demo):
    """A saved or changed input must not drag the other 319 along."""
    _, inputs = demo
    for item in inputs:
        assert item["input"].untyped_storage().nbytes() == 28 * 28 * 4


def test_images_need_no_pickle():
    with (
        DATA.joinpath("fashion_test.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        arrays = {name: archive[name] for name in archive.files}
    assert arrays.keys() == {"images", "labels", "indices"}
    assert arrays["images"].dtype == np.uint8
    assert arrays["images"].shape == (320, 28, 28)
    assert arrays["labels"].dtype == arrays["indices"].dtype == np.int64


def test_weights_are_float32():
    with safe_open(str(DATA.joinpath("fashion_cnn.safetensors")), framework="pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    expected = {name: tensor.shape for name, tensor in fashion_cnn().state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_network_is_a_plain_vgg(demo):
    model, _ = demo
    assert not any(module.training for module in model.modules())
    layers = {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers == {
        "features.0": nn.Conv2d,
        "features.3": nn.Conv2d,
        "features.6": nn.Conv2d,
        "classifier.0": nn.Linear,
        "classifier.3": nn.Linear,
    }
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("batch", [1, 5])
def test_untrained_network(batch):
    model = fashion_cnn()
    assert model.training
    assert model(torch.zeros(batch, 1, 28, 28)).shape == (batch, 10)


def test_notice_ships_with_the_images():
    text = DATA.joinpath("NOTICE").read_text(encoding="utf-8")
    for words in (
        "Copyright: 2017, Zalando SE",
        "Permission is hereby granted, free of charge",
        'THE SOFTWARE IS PROVIDED "AS IS"',
    ):
        assert words in text


def test_training_script_explains_itself():
    """``--help`` works where the data set is not installed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train_demo.py"), "--help", "--data", "/missing"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dataset-fashion-mnist" in done.stdout


def test_training_script_names_the_missing_data_set(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "train_demo.py"),
            *("--data", str(tmp_path / "absent"), "--output", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install -y dataset-fashion-mnist" in done.stderr
    assert not (tmp_path / "out").exists()
