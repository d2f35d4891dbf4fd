"""Long use: nothing grows with the number of steps, nothing is left behind, and settings are given back."""

import contextlib
import gc
import mmap
import os
import resource
import weakref
from statistics import median

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers

import skeletal
from skeletal.core.model.denormals import _flushing
from skeletal.harness import data
from skeletal.harness.config import Training, resolve
from skeletal.harness.training.train import train
from tests.cases import convnet, images, mlp

MIB = 2**20


def resident() -> int:
    """Bytes of memory in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def assert_flat(readings: list[int]) -> None:
    """Of three thirds the last two use the same memory, but for noise."""
    third = len(readings) // 3
    grown = median(readings[2 * third :]) - median(readings[third : 2 * third])
    assert grown < 8 * MIB, f"grown by {grown / MIB:.1f} MiB in {third} steps"


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")


@needs_proc
def test_a_leak_would_be_found():
    kept, readings = [], []
    for _ in range(2400):
        kept.append(mmap.mmap(-1, 16160))  # as much as the scores of one step; not from a heap, which may have room
        kept[-1].write(b"x" * 16160)
        readings.append(resident())
    with pytest.raises(AssertionError, match=r"grown by \d+"):
        assert_flat(readings)


@needs_proc
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
def test_pruning_in_thousands_of_steps_does_not_grow():
    readings: list[int] = []
    skeletal.prune(
        mlp(), images(), density=0.4, steps=2400, on_collapse="keep", on_step=lambda _: readings.append(resident())
    )
    assert len(readings) == 2400
    assert_flat(readings)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_compiled_training_of_many_steps_does_not_grow(path):
    model, readings = convnet(), []
    mask = skeletal.prune(model, images(), density=0.2, method="snip")
    batches = images(count=4, examples=16)
    fast = skeletal.compile(model, mask, batches[0][0], path=path)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01, momentum=0.9)
    for step in range(1500):
        x, y = batches[step % 4]
        rest = 16 if step % 10 else 5  # the last batch of an epoch is smaller
        optimizer.zero_grad()
        nn.functional.cross_entropy(fast(x[:rest]), y[:rest]).backward()
        optimizer.step()
        readings.append(resident())
    assert_flat(readings)


@needs_proc
@pytest.mark.slow
def test_pruning_and_compiling_again_and_again_does_not_grow():
    readings = []
    for seed in range(45):
        model = convnet(seed)
        mask = skeletal.prune(model, images(), density=0.2, steps=3, seed=seed)
        skeleton = mask.attach(model)
        fast = skeletal.compile(model, mask, images()[0][0], path="sparse")
        fast(images()[0][0]).sum().backward()
        skeleton.detach()
        readings.append(resident())
    assert_flat(readings)


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """How many there are, of every kind that torch knows."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    found = {kind: sum(len(getattr(module, kind)) for module in model.modules()) for kind in kinds}
    for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        found["of a parameter: " + kind] = sum(len(getattr(p, kind) or ()) for p in model.parameters())
    for kind in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        found["of an optimizer: " + kind] = len(getattr(optimizer, kind))
    for kind in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        found[kind] = len(getattr(optimizers, kind))
    return found


def test_a_detached_mask_leaves_nothing_behind():
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.2, method="snip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = hooks(model, optimizer)
    assert {count for kind, count in before.items() if "_global_" not in kind} == {0}  # those are of other tests, too
    skeleton = mask.attach(model, optimizer)
    assert hooks(model, optimizer) != before
    model(images()[0][0]).sum().backward()
    optimizer.step()
    skeleton.detach()
    assert hooks(model, optimizer) == before
    gone = weakref.ref(skeleton), weakref.ref(mask)
    del skeleton, mask
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_models_that_are_let_go_are_gone_with_their_hooks():
    optimizer_hooks = len(optimizers._global_optimizer_post_hooks)
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.2, method="snip")
    fast = skeletal.compile(model, mask, images()[0][0], path="sparse")
    optimizer = torch.optim.SGD([*model.parameters(), *fast.parameters()], lr=0.1)
    skeleton = mask.attach(model)
    for network in (model, fast):
        network(images()[0][0]).sum().backward()
    optimizer.step()
    gone = [weakref.ref(thing) for thing in (model, fast, skeleton, optimizer, model[0].weight)]
    del model, fast, skeleton, optimizer, network
    gc.collect()
    assert [reference() for reference in gone] == [None] * 5
    assert len(optimizers._global_optimizer_post_hooks) == optimizer_hooks


class Stop(Exception):
    """Comes from the caller's own code in the middle of something."""


def stop(*_: object) -> None:
    raise Stop


def pruned(fails: bool) -> None:
    skeletal.prune(mlp(), images(), density=0.5, steps=3, on_step=stop if fails else None)


def trained(fails: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    if fails:
        model[1].register_forward_hook(stop)
    training = resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")
    train(model, data.load("digits", None, seed=0, workers=0), training, device="cpu", progress=False)


def compiled(fails: bool) -> None:
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.2, method="snip")
    if fails:
        model[8].register_forward_hook(stop)
    skeletal.compile(model, mask, images()[0][0])


def surviving() -> float:
    """Fraction of denormal products that are not flushed to 0, over all threads that compute."""
    return (torch.full((400_000,), 1e-30) * torch.full((400_000,), 1e-9) != 0).double().mean().item()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", [pruned, trained, compiled])
@pytest.mark.parametrize(("threads", "flush"), [(1, False), (2, True)])
def test_threads_and_denormals_are_given_back(what, fails, threads, flush):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    flushes = torch.set_flush_denormal(flush) and flush
    try:
        with pytest.raises((Stop, ValueError)) if fails else contextlib.nullcontext():
            what(fails)
        assert torch.get_num_threads() == threads and _flushing() == flushes
        assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
        if not flush:
            assert surviving() == 1
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


@pytest.fixture
def deterministic():
    """torch's deterministic mode, in which memory that nobody has written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_gives_the_same_twice(deterministic):
    def outcome(engine: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
            nn.Flatten(), nn.Linear(8 * 16, 10),
        )  # fmt: skip
        digits = data.load("digits", None, seed=0, workers=0)
        mask = skeletal.prune(model, digits.train.batches(64, train=True), density=0.2, steps=4)
        training = resolve(Training(epochs=1, batch_size=128, engine=engine), "quick")
        train(model, digits, training, mask=mask, device="cpu", progress=False)
        return [*mask.values(), *model.state_dict().values()]

    for engine in ("dense", "sparse"):
        for first, second in zip(outcome(engine), outcome(engine), strict=True):
            assert torch.equal(first, second) and first.isfinite().all()
    assert torch.are_deterministic_algorithms_enabled()
