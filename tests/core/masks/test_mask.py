import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import skeletal
from skeletal.core.masks.maskfile import pack, unpack
from skeletal.core.model.weights import count_biases, prunable_weights
from tests.cases import Residual, convnet, images
from tests.robust import forge

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def a_mask(density=0.3):
    return skeletal.prune(convnet(), images(), density=density, method="snip")


def test_mapping_and_counts():
    mask = a_mask()
    assert list(mask) == ["0.weight", "3.weight", "8.weight"]
    assert mask["3.weight"].shape == (16, 8, 3, 3)
    assert mask["3.weight"].dtype == torch.bool
    assert mask.total == 216 + 1152 + 160
    assert mask.kept == round(0.3 * mask.total) == sum(int(keep.sum()) for keep in mask.values())
    assert mask.sparsity == 1 - mask.density


def test_three_denominators_and_the_table():
    mask = a_mask()
    kept, total, biases, parameters = mask.kept, 1528, 16 + 10, 1528 + 26 + 2 * 8 + 2 * 16
    assert mask.densities() == {
        "prunable": kept / total,
        "prunable + biases": (kept + biases) / (total + biases),
        "all parameters": (kept + parameters - total) / parameters,
    }
    table = str(mask)
    for text in (
        "3.weight",
        "16x8x3x3",
        "1,152",
        "prunable + biases",
        "all parameters",
        f"kept {kept} of 1,528",
    ):
        assert text in table
    assert "unknown" in str(skeletal.Mask({"w": torch.ones(2, 2)}))
    assert "empty" in str(skeletal.Mask({"w": torch.zeros(2, 2)}))
    assert repr(mask) == f"Mask(3 layers, {kept} of 1528 kept, density {kept / 1528:.4g}, snip)"


def test_biases_are_those_of_pruned_layers():
    model = Residual()
    weights = prunable_weights(model)
    assert count_biases(model, weights) == 6 + 6 + 10
    assert count_biases(model, {"head.weight": weights["head.weight"]}) == 10


def test_mask_owns_its_tensors_and_refuses_what_is_not_a_mask():
    keep = torch.ones(3, dtype=torch.bool)
    mask = skeletal.Mask({"w": keep})
    keep.zero_()
    assert mask.kept == 3
    with pytest.raises(skeletal.MaskError, match=r"mask of w \(2,\) holds values other than 0 and 1"):
        skeletal.Mask({"w": torch.tensor([0.0, 0.5])})
    with pytest.raises(skeletal.MaskError, match="at least one layer"):
        skeletal.Mask({})


@given(shapes, st.integers(0, 99))
def test_packing_round_trip(shape, seed):
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    bits = pack(keep)
    assert bits.numel() == -(-keep.numel() // 8)
    assert torch.equal(unpack(bits, shape), keep)


def test_file_round_trip_is_small_and_keeps_order_and_metadata(tmp_path: Path):
    mask = skeletal.Mask({"z": torch.ones(80, 80), "a": torch.zeros(3)}, {"method": "x", "nested": {"list": [1, 2.5]}})
    mask.save(tmp_path / "m.safetensors")
    again = skeletal.Mask.load(tmp_path / "m.safetensors")
    assert again == mask
    assert list(again) == ["z", "a"]
    assert again.metadata == mask.metadata
    assert (tmp_path / "m.safetensors").stat().st_size < 6400 / 8 + 600


def test_metadata_tells_how_the_mask_was_found():
    metadata = skeletal.prune(convnet(), images(), density=0.3, steps=3, seed=7, on_collapse="keep").metadata
    expected = {
        "method": "force",
        "schedule": "exponential",
        "steps": 3,
        "loss": "default",
        "seed": 7,
        "density": 0.3,
        "model": "Sequential",
    }
    assert expected.items() <= metadata.items()
    assert metadata["versions"]["torch"] == torch.__version__


@given(st.data())
def test_any_flipped_bit_or_cut_is_an_error_not_another_mask(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "m.safetensors"
    mask = a_mask()
    mask.save(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        again = skeletal.Mask.load(path)
        assert again == mask and again.metadata == mask.metadata  # white space in the header may change
    except skeletal.MaskError as error:
        assert str(path) in str(error)


def test_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="no mask file at"):
        skeletal.Mask.load(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(skeletal.MaskError, match="not a skeletal mask file"):
        skeletal.Mask.load(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(skeletal.MaskError, match="not a skeletal mask file"):
        skeletal.Mask.load(path)
    path.write_bytes(b"")
    with pytest.raises(skeletal.MaskError, match="not a skeletal mask file"):
        skeletal.Mask.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "mask format 99"),
        ({"shapes": {"w": [9, 9]}}, "has 1 bytes"),
        ({"shapes": {"w": [-1]}}, r"shape \[-1\]"),
        ({"shapes": {"w": "x"}}, "shape 'x'"),
        ({"shapes": {"v": [4]}}, "does not list"),
        ({"metadata": 3}, "does not list"),
        ({"sha256": "0"}, "checksum"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, change, message):
    path = tmp_path / "m.safetensors"
    skeletal.Mask({"w": torch.tensor([1, 0, 1, 1])}).save(path)
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["skeletal"]) | change
    outer["__metadata__"]["skeletal"] = json.dumps(inner)
    header = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    with pytest.raises(skeletal.MaskError, match=message):
        skeletal.Mask.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(format=True), "mask format True"),
        (lambda told: told.update(shapes={"w": [1] * 17 + [4]}), "the shape"),
        (lambda told: told.update(shapes={"w": [2**21, 2**21]}), "the shape"),
        (lambda told: told.update(shapes={"w": [0, 2**62]}), "the shape"),
        (lambda told: told.update(shapes={"w": [4.0]}), "the shape"),
        (lambda told: told.update(shapes={"w": [True, 4]}), "the shape"),
        (lambda told: told.update(shapes={"w": [3]}), "more bits than weights"),
        (lambda told: told.update(shapes={"w\n": [4]}), "cannot be printed"),
        (lambda told: told.update(metadata={"left_out": ["a\x1b"]}), "left_out"),
        (lambda told: told.update(metadata={"left_out": "a"}), "should be list"),
        (lambda told: told.update(metadata={"method": 3}), "should be str"),
        (lambda told: told.update(metadata={"seed": True}), "should be int"),
        (lambda told: told.update(metadata={"biases": -1}), "at least 0"),
        (lambda told: told.update(metadata={"parameters": 3}), "at least 4"),
    ],
)
def test_what_a_hostile_author_would_write_is_refused_with_a_right_checksum(tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    skeletal.Mask({"w": torch.tensor([1, 0, 1, 1])}).save(path)
    forge.mask_file(path, lambda told: None)
    assert skeletal.Mask.load(path).kept == 3  # what is forged in another way than its sums would be refused for them
    forge.mask_file(path, change)
    with pytest.raises(skeletal.MaskError, match=message):
        skeletal.Mask.load(path)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch):
    path = tmp_path / "m.safetensors"
    old = a_mask(0.5)
    old.save(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        a_mask(0.1).save(path)
    monkeypatch.undo()
    assert skeletal.Mask.load(path) == old
    assert os.listdir(tmp_path) == ["m.safetensors"]
