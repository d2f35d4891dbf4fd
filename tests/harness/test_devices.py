import pytest
import torch

from skeletal.harness.devices import pick_device, tuned


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(two_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own, there are 2: start 2"):
        pick_device("auto")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda;1"])
def test_what_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device '{name}' is not usable here .*; cpu always is"):
        pick_device(name)


def test_convolutions_are_tuned_on_a_gpu_only_and_not_against_determinism(monkeypatch):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    for device, deterministic, expected in (("cuda", False, True), ("cuda", True, before), ("cpu", False, before)):
        monkeypatch.setattr(cudnn, "deterministic", deterministic)
        with tuned(torch.device(device)):
            assert cudnn.benchmark is expected
        assert cudnn.benchmark is before
