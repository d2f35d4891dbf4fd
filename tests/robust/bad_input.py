"""Every kind of bad input we know, each as a function that hands it over, and the message a user gets.

    python -m tests.robust.bad_input

prints the tables of docs/bad-input.md, with which a test compares them.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import re
import struct
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn

import skeletal
from skeletal.harness import statefile
from tests.cases import convnet, images, mlp
from tests.robust import child, forge

Cause = Callable[[], object]
CASES: dict[str, dict[str, Cause]] = {}
"""group -> what is wrong -> how to do it, in an empty current folder"""

MASKS, CHECKPOINTS, RUNS = "Mask files", "Checkpoints", "Run folders and disks"
NUMBERS, SETTINGS, COMMANDS = "Weights, gradients and batches", "Settings and names", "Config files and data"


def case(group: str, wrong: str) -> Callable[[Cause], Cause]:
    def add(cause: Cause) -> Cause:
        assert wrong not in CASES.setdefault(group, {}), wrong
        CASES[group][wrong] = cause
        return cause

    return add


def command(*arguments: object) -> str:
    """What `skeletal` tells a user on stderr; it has to end with an error."""
    from skeletal.cli import main

    told = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["skeletal", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "1000"}),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(told),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            main()
        except SystemExit as stopped:
            assert stopped.code
            return re.sub(r"[│╭╮╰╯─]", " ", told.getvalue())
    raise AssertionError(f"no error: {arguments}")


def message(cause: Cause) -> str:
    """What comes of it, in an empty folder: the error with its kind, or what the command prints; on one line."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            told = cause()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        assert isinstance(told, str), "no error"
        told = told.replace(os.path.realpath(folder) + os.sep, "").replace(folder + os.sep, "")
    for changing, shown in VARYING:
        told = re.sub(changing, shown, told)
    return " ".join(told.split())


# What differs from machine to machine, and what other libraries say in their own words.
VARYING = [
    (r"process \d+ on \S+", "process … on …"),
    (r"since 20\d\d-[-0-9:+. ]+", "since …"),
    (r"-[0-9a-f]{8}\b", "-…"),
    (r"\((Error while deser|Weights only load|Error\(s\) in loading|Trying to resize|\[enforce fail).*?\);", "(…);"),
    (r"archive/data/\d+", "archive/data/…"),
    (r"maximum recursion depth exceeded[^;)]*", "maximum recursion depth exceeded …"),
    (r"usable here \(.*\)", "usable here (…)"),
]


def a_mask(**layers: Any) -> Path:
    path = Path("m.safetensors")
    tensors = {name.replace("__", "."): torch.tensor(keep) for name, keep in layers.items()}
    skeletal.Mask(tensors or {"head.weight": torch.tensor([1, 0, 1])}, {"method": "force"}).save(path)
    return path


def load(path: Path) -> skeletal.Mask:
    return skeletal.Mask.load(path)


def forged(change: Callable[[dict[str, Any]], object], **options: Any) -> skeletal.Mask:
    path = a_mask()
    forge.mask_file(path, change, **options)
    return load(path)


def with_bytes(change: Callable[[bytearray], object]) -> skeletal.Mask:
    path = a_mask()
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return load(path)


@case(MASKS, "no file there")
def _() -> object:
    return load(Path("m.safetensors"))


@case(MASKS, "a file of another kind: a pickle")
def _() -> object:
    Path("m.safetensors").write_bytes(pickle.dumps({"head.weight": 1}))
    return load(Path("m.safetensors"))


@case(MASKS, "an empty file")
def _() -> object:
    return with_bytes(bytearray.clear)


@case(MASKS, "a safetensors file that is no mask")
def _() -> object:
    save_file({"head.weight": torch.zeros(3)}, "m.safetensors")
    return load(Path("m.safetensors"))


@case(MASKS, "cut short")
def _() -> object:
    return with_bytes(lambda content: content.pop())


@case(MASKS, "one bit flipped")
def _() -> object:
    def flip(content: bytearray) -> None:
        content[-1] ^= 1

    return with_bytes(flip)


@case(MASKS, "bytes after the end")
def _() -> object:
    return with_bytes(lambda content: content.extend(b"more"))


@case(MASKS, "a header that claims 2^60 bytes")
def _() -> object:
    def claim(content: bytearray) -> None:
        content[:8] = struct.pack("<Q", 2**60)

    return with_bytes(claim)


@case(MASKS, "a layer of 10^12 weights in one byte: refused before anything is allocated")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [10**6, 10**6]}))


@case(MASKS, "a layer of more weights than any computer holds")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [0, 2**62, 2**62]}))


@case(MASKS, "a negative size")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [-3]}))


@case(MASKS, "more bits than weights")
def _() -> object:
    return forged(lambda header: None, data=b"\xff")


@case(MASKS, "another list of layers than it holds")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"more.weight": [3]}))


@case(MASKS, "a name that stands there twice")
def _() -> object:
    def twice(content: bytearray) -> None:
        start = content.index(rb"{\"head.weight\"")
        content[start + 1 : start + 1] = rb"\"head.weight\": [4], "
        content[:8] = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + len(rb"\"head.weight\": [4], "))

    return with_bytes(twice)


@case(MASKS, "a name with terminal codes in it")
def _() -> object:
    return forged(lambda header: header.update(shapes={"\x1b[2Jhead": [3]}))


@case(MASKS, "a name that climbs out of a folder: names are never paths, and no network has it")
def _() -> object:
    path = a_mask()
    forge.mask_file(path, lambda header: header.update(shapes={"../../etc/passwd": [3]}))
    return load(path).attach(mlp())


@case(MASKS, "metadata of the wrong kind")
def _() -> object:
    return forged(lambda header: header["metadata"].update(biases="many"))


@case(MASKS, "metadata that cannot be true")
def _() -> object:
    return forged(lambda header: header["metadata"].update(parameters=1))


@case(MASKS, "a header that is no JSON object")
def _() -> object:
    path = a_mask()
    save_file({"head.weight": torch.zeros(1, dtype=torch.uint8)}, path, metadata={"skeletal": "1"})
    return load(path)


@case(MASKS, "metadata nested 5,000 deep")
def _() -> object:
    save_file({"w": torch.zeros(1)}, "m.safetensors", metadata={"skeletal": "[" * 5000})
    return load(Path("m.safetensors"))


@case(MASKS, "a later format version")
def _() -> object:
    return forged(lambda header: header.update(format=2))


@case(MASKS, "the mask of another network")
def _() -> object:
    return load(a_mask()).attach(mlp())


@case(MASKS, "the mask of a network of another width")
def _() -> object:
    return skeletal.Mask({"1.weight": torch.ones(10, 192), "3.weight": torch.ones(10, 10)}).attach(mlp())


@case(MASKS, "values other than 0 and 1")
def _() -> object:
    return skeletal.Mask({"head.weight": torch.tensor([0.0, 0.5])})


@case(MASKS, "no layers")
def _() -> object:
    return skeletal.Mask({})


@case(MASKS, "a pruned weight that is not 0 any more")
def _() -> object:
    return skeletal.Mask({"1.weight": torch.zeros(20, 192), "3.weight": torch.ones(10, 20)}).check(mlp())


def run_again(tamper: Callable[[Path], object], engine: str = "dense", begun: str = "dense") -> object:
    """A run with a checkpoint and no result, tampered with, and started again."""
    folder, _ = child.run(Path("runs"), begun, epochs=1)
    (folder.path / "result.json").unlink()
    tamper(folder.path)
    return child.run(Path("runs"), engine, epochs=1)


def with_checkpoint(change: Callable[[bytearray], object]) -> object:
    def tamper(folder: Path) -> None:
        file = statefile.path_in(folder)
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return run_again(tamper)


def with_state(change: Callable[[dict[str, Any]], object], **options: str) -> object:
    def tamper(folder: Path) -> None:
        state = statefile.load(folder) or {}
        change(state)
        statefile.save(folder, state)

    return run_again(tamper, **options)


@case(CHECKPOINTS, "cut short")
def _() -> object:
    return with_checkpoint(lambda content: content.pop())


@case(CHECKPOINTS, "one bit flipped")
def _() -> object:
    def flip(content: bytearray) -> None:
        content[len(content) // 2] ^= 1

    return with_checkpoint(flip)


@case(CHECKPOINTS, "bytes after the end")
def _() -> object:
    return with_checkpoint(lambda content: content.extend(b"more"))


@case(CHECKPOINTS, "code in it, which is not run")
def _() -> object:
    class Trap:
        def __reduce__(self) -> Any:
            return open, ("sprung", "w")

    try:
        return with_state(lambda state: state.update(trap=Trap()))
    finally:
        assert not Path("sprung").exists()


@case(CHECKPOINTS, "a tensor larger than its data: refused before anything is allocated")
def _() -> object:
    def lie(name: str, content: bytes) -> bytes:
        size = b"M" + (16 * 4 * 4).to_bytes(2, "little")  # the inputs of the linear layer
        assert "data.pkl" not in name or size in content
        return content.replace(size, b"J" + (10**9).to_bytes(4, "little")) if name.endswith("data.pkl") else content

    return run_again(lambda folder: forge.archive(statefile.path_in(folder), lie))


@case(CHECKPOINTS, "an archive that would grow when unpacked")
def _() -> object:
    return run_again(lambda folder: forge.archive(statefile.path_in(folder), compression=zipfile.ZIP_DEFLATED))


@case(CHECKPOINTS, "an entry twice")
def _() -> object:
    def twice(folder: Path) -> None:
        with zipfile.ZipFile(statefile.path_in(folder), "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(archive.namelist()[0], b"")

    return run_again(twice)


@case(CHECKPOINTS, "an entry whose name climbs out of a folder")
def _() -> object:
    def climb(folder: Path) -> None:
        with zipfile.ZipFile(statefile.path_in(folder), "a") as archive:
            archive.writestr("../../sprung", b"")

    return run_again(climb)


@case(CHECKPOINTS, "something of torch's that is no run")
def _() -> object:
    return run_again(lambda folder: torch.save({"model": {}}, statefile.path_in(folder)))


@case(CHECKPOINTS, "another format version")
def _() -> object:
    return with_state(lambda state: state.update(format=2))


@case(CHECKPOINTS, "other settings")
def _() -> object:
    return with_state(lambda state: state["settings"].update(lr=3.0))


@case(CHECKPOINTS, "another network")
def _() -> object:
    return with_state(lambda state: state["model"].update({"9.bias": torch.zeros(3)}))


@case(CHECKPOINTS, "another network, trained by the sparse engine")
def _() -> object:
    return with_state(lambda state: state["engine"]["paths"].pop("4.weight"), engine="sparse", begun="sparse")


@case(CHECKPOINTS, "another engine than the one it was trained by")
def _() -> object:
    return run_again(lambda folder: None, engine="sparse")


@case(RUNS, "config.json edited by hand")
def _() -> object:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"lr": 3.0}))

    return run_again(edit)


@case(RUNS, "a folder of another format version")
def _() -> object:
    def age(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"format": 0}))

    return run_again(age)


@case(RUNS, "config.json is no JSON")
def _() -> object:
    return run_again(lambda folder: (folder / "config.json").write_text("{"))


@case(RUNS, "metrics.jsonl has lost a line; a last line cut in two is dropped and written again")
def _() -> object:
    return run_again(lambda folder: (folder / "metrics.jsonl").write_text(""))


@case(RUNS, "metrics.jsonl with a line that is none")
def _() -> object:
    return run_again(lambda folder: (folder / "metrics.jsonl").write_text("oops\n"))


@case(RUNS, "a damaged mask in it")
def _() -> object:
    return run_again(lambda folder: (folder / "mask.safetensors").write_bytes(b"x"))


@case(RUNS, "the same command started twice; `--wait` waits")
def _() -> object:
    arguments, told = ("run", "--method", "random", "--epochs", "1"), []

    def meanwhile(*_: object) -> None:  # another thread is refused as another process is
        thread = threading.Thread(target=lambda: told.append(command(*arguments)))
        thread.start()
        thread.join()
        raise ValueError("the first has seen enough")

    with mock.patch("skeletal.harness.experiment._prepare", meanwhile):
        command(*arguments)
    return told[0]


@case(RUNS, "a disk that is full: the last checkpoint stays, and nothing half-written")
def _() -> object:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", full):
        return command("prune", "--method", "random")


@case(RUNS, "an output folder that is read-only")
def _() -> object:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with mock.patch.object(Path, "mkdir", read_only):
        return command("run", "--method", "random", "--epochs", "1")


@case(RUNS, "an output folder that is a file")
def _() -> object:
    Path("a-file").touch()
    return command("run", "--method", "random", "--epochs", "1", "--out", "a-file")


@case(RUNS, "a mask that is there already")
def _() -> object:
    Path("m.safetensors").touch()
    return command("prune", "--out", "m.safetensors")


@case(RUNS, "a run name that is a path")
def _() -> object:
    return command("run", "--name", "../elsewhere")


@case(RUNS, "no run there")
def _() -> object:
    return command("eval", "runs/mine")


def prune(model: nn.Module | None = None, batches: Any = None, **options: Any) -> skeletal.Mask:
    return skeletal.prune(model or mlp(), images() if batches is None else batches, **{"density": 0.5, **options})


@case(NUMBERS, "a weight that is NaN or infinite")
def _() -> object:
    model = mlp()
    with torch.no_grad():
        model[3].weight[2, 1] = float("nan")
    return prune(model)


@case(NUMBERS, "an input that is NaN or infinite, so that the loss is")
def _() -> object:
    batches = images()
    batches[1][0][0, 0, 0, 0] = float("inf")
    return prune(batches=batches, steps=3)


@case(NUMBERS, "a gradient that is NaN at a finite loss")
def _() -> object:
    return prune(loss=lambda outputs, _: (outputs.sum() * 0).sqrt())


@case(NUMBERS, "a score of your own that is NaN")
def _() -> object:
    return prune(score=lambda at: {name: weight * float("nan") for name, weight in at.weights.items()})


@case(NUMBERS, "a training loss that is NaN or infinite, at any step; the last good checkpoint stays")
def _() -> object:
    return training_with(lambda model: model[9].register_forward_hook(lambda *_: _[2] * float("nan")))


@case(NUMBERS, "a weight that overflows in training")
def _() -> object:
    return training_with(lambda model: model[9].bias.register_hook(lambda gradient: gradient * float("inf")), 1797)


def training_with(change: Callable[[nn.Module], object], batch_size: int = 256) -> object:
    from skeletal.harness import data
    from skeletal.harness.config import Training, resolve
    from skeletal.harness.train import train

    model = child.network()
    change(model)
    training = resolve(Training(epochs=1, batch_size=batch_size), "quick")
    return train(model, data.load("digits", None, seed=0, workers=0), training, device="cpu", progress=False)


@case(NUMBERS, "no batches at all")
def _() -> object:
    return prune(batches=[])


@case(NUMBERS, "a batch without examples")
def _() -> object:
    return prune(batches=[(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))])


@case(NUMBERS, "something that is no batch")
def _() -> object:
    return prune(batches=[torch.zeros(2, 192)])


@case(NUMBERS, "a label that no output stands for")
def _() -> object:
    return prune(batches=[(x, y + 7) for x, y in images()])


@case(NUMBERS, "images with another number of channels than the network takes: torch's own words")
def _() -> object:
    return prune(convnet(), images(channels=1))


@case(NUMBERS, "a loss that is no number")
def _() -> object:
    return prune(loss=lambda outputs, _: outputs)


@case(NUMBERS, "a loss that no weight changes")
def _() -> object:
    return prune(loss=lambda outputs, _: outputs.detach().sum())


@case(NUMBERS, "a network with nothing to prune")
def _() -> object:
    return prune(nn.BatchNorm1d(3))


@case(NUMBERS, "a network that collapses on the way")
def _() -> object:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model[3].bias.fill_(-100)
    return prune(model, density=0.1, steps=4)


@case(NUMBERS, "a finished mask without a path from input to output: a warning, as comparisons need the mask")
def _() -> object:
    def first_layer(at: Any) -> dict[str, torch.Tensor]:
        return {"1.weight": at.weights["1.weight"].abs() + 1, "3.weight": at.weights["3.weight"].abs() * 1e-3}

    with warnings.catch_warnings():
        warnings.simplefilter("error", skeletal.CollapseWarning)
        return prune(density=0.1, method="magnitude", score=first_layer)


@case(NUMBERS, "fewer weights than a repair needs")
def _() -> object:
    mask = skeletal.Mask({"1.weight": torch.zeros(20, 192), "3.weight": torch.eye(20)[:10]})
    return skeletal.repair(mask, mlp(), at_least=20)


for asked in ("0", "-1", "1.5", "nan"):
    case(SETTINGS, f"density {asked}")(lambda asked=asked: prune(density=float(asked)))


@case(SETTINGS, "density 1e-12, which keeps nothing")
def _() -> object:
    return prune(density=1e-12)


@case(SETTINGS, "sparsity 1")
def _() -> object:
    return command("run", "--sparsity", "1")


@case(SETTINGS, "density and sparsity")
def _() -> object:
    return command("run", "--density", "0.1", "--sparsity", "0.9")


@case(SETTINGS, "a density that is no number")
def _() -> object:
    return command("run", "--density", "much")


@case(SETTINGS, "no steps")
def _() -> object:
    return prune(steps=0)


@case(SETTINGS, "several steps of a one-shot method")
def _() -> object:
    return prune(method="snip", steps=5)


@case(SETTINGS, "no epochs")
def _() -> object:
    return command("run", "--epochs", "0")


@case(SETTINGS, "no weight of that name")
def _() -> object:
    return prune(prunable=["9.weight"])


for what, arguments in {
    "method": ("run", "--method", "forc"), "network": ("run", "--model", "vgg-mni"),
    "data set": ("run", "--data", "cifr10"), "preset": ("run", "--preset", "cifar"),
    "engine": ("run", "--engine", "spars"), "schedule": ("run", "--schedule", "expo"),
    "device": ("run", "--device", "gpu"), "option": ("run", "--desnity", "0.1"), "command": ("rnu",),
}.items():  # fmt: skip
    case(SETTINGS, f"an unknown {what}")(lambda arguments=arguments: command(*arguments))


@case(SETTINGS, "an image too small for the network")
def _() -> object:
    return command("run", "--model", "lenet5")


def config(content: bytes) -> str:
    Path("my.toml").write_bytes(content)
    return command("run", "--config", "my.toml")


@case(COMMANDS, "a config file that is not there")
def _() -> object:
    return command("run", "--config", "my.toml")


for wrong, content in {
    "a config file that is no TOML": b"density = ",
    "a config file that is no text": b"\xff\xfe\x00",
    "a config file with an unknown setting": b"desnity = 0.1\n",
    "a config file with a setting of another kind": b'epochs = "many"\n',
    "a config file with a table for a number": b"[density]\nx = 1\n",
    "a config file nested 5,000 deep": b"density = " + b"[" * 5000 + b"]" * 5000,
}.items():
    case(COMMANDS, wrong)(lambda content=content: config(content))


@case(COMMANDS, "a data set that is not here")
def _() -> object:
    with mock.patch.dict(os.environ, {"HOME": os.getcwd()}):
        return command("run", "--data", "cifar10")


def image_folder() -> list[Path]:
    from PIL import Image

    files = []
    for part in ("train", "val"):
        for name in ("ape", "bee"):
            Path("pets", part, name).mkdir(parents=True)
            for number in range(3):
                files.append(Path("pets", part, name, f"{number}.png"))
                Image.new("RGB", (40, 40)).save(files[-1])
    return files


@case(COMMANDS, "a corrupt image in the middle of a folder; `--skip-corrupt` leaves it out and counts")
def _() -> object:
    for file in image_folder()[:6]:
        file.write_bytes(file.read_bytes()[:50])
    from skeletal.harness import data

    return list(data.load("pets", None, seed=0, workers=0).train.batches(2, train=False))


@case(COMMANDS, "a class without images")
def _() -> object:
    image_folder()
    Path("pets/train/cat").mkdir()
    return command("run", "--data", "pets")


@case(COMMANDS, "other classes to train than to test")
def _() -> object:
    for file in image_folder():
        if file.parts[1:3] == ("val", "bee"):
            file.unlink()
    Path("pets/val/bee").rename("pets/val/cat")
    (Path("pets/val/cat") / "0.png").write_bytes(Path("pets/train/ape/0.png").read_bytes())
    return command("run", "--data", "pets")


def tables() -> str:
    """The tables of the page."""
    lines = []
    for group, causes in CASES.items():
        lines += [f"## {group}", "", "| what is wrong | what you are told |", "|---|---|"]
        lines += [f"| {wrong} | {cell(message(cause))} |" for wrong, cause in causes.items()]
        lines.append("")
    return "\n".join(lines)


def cell(told: str) -> str:
    """A message as it stands in the table."""
    return f"`{told.replace('|', chr(92) + '|').replace('`', chr(39))}`"


if __name__ == "__main__":
    print(tables())
