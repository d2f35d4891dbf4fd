"""Damaged and hostile files against the readers of masks, configs and checkpoints.

    python benchmarks/fuzz.py [--masks 100000] [--configs 100000] [--parses 3000] [--checkpoints 3000] [--seed 0]

A case is a valid file with a few mutations (bits, bytes, cuts, copies, pieces of another file), or random bytes. In
half of the masks and a third of the checkpoints the damage is inside, and sizes and checksums are made to match again,
as a hostile author would do and a bad disk would not. A reader may refuse with its documented error or accept; what it
accepts has to be sound. Anything else is a finding: it is printed with the number that reproduces the case
(`--only masks:1234`), and the exit status is 1.
"""

import argparse
import copy
import io
import json
import platform
import random
import resource
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors
import torch
from cyclopts import CycloptsError

import skeletal
from skeletal.cli import app, config_file
from skeletal.core.masks import maskfile
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.store import statefile

STRANGE = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**12, 10**40, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../../x",
    "/", "\x1b[2J", "\ud800", "a" * 5000, [], [[]], [0], [-1], [2**40, 2**40], [10**12], {}, {"": {}}, [1] * 100, "1",
    b"",
]  # fmt: skip


def mutate_bytes(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at, size = chance.randrange(len(data) + 1), chance.choice([1, 2, 4, 8, 64])
        match chance.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + size] = chance.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = chance.randbytes(size)
            case 4:
                del data[at:]
            case 5:
                data[at:at] = data[chance.randrange(len(data) + 1) :][:size]
            case 6:
                other = chance.choice(others)
                data[at : at + size] = other[chance.randrange(len(other) + 1) :][: chance.choice([size, len(other)])]
    return bytes(data)


def mutate_tree(tree: Any, chance: random.Random) -> Any:
    """The same plain data with one thing in it replaced, removed, renamed or doubled."""
    if isinstance(tree, dict) and tree and chance.random() < 0.9:
        key, changed = chance.choice(list(tree)), dict(tree)
        match chance.randrange(4):
            case 0:
                del changed[key]
            case 1:
                name = chance.choice([name for name in STRANGE if isinstance(name, str)])
                changed = {name if k == key else k: v for k, v in changed.items()}
            case _:
                changed[key] = mutate_tree(tree[key], chance)
        return changed
    if isinstance(tree, list) and tree and chance.random() < 0.9:
        at = chance.randrange(len(tree))
        return [*tree[:at], mutate_tree(tree[at], chance), *tree[at + chance.randrange(2) :]]
    return copy.deepcopy(chance.choice([value for value in STRANGE if not isinstance(value, bytes)]))


class Masks:
    """`skeletal.Mask.load`."""

    refusals = (skeletal.MaskError,)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mask.safetensors"
        generator = torch.Generator().manual_seed(0)
        layers = {"features.0.weight": (8, 3, 3, 3), "head.weight": (10, 33), "scalar": (), "none": (0, 4)}
        told = {
            "method": "force",
            "biases": 18,
            "parameters": 900,
            "seed": 0,
            "left_out": ["x"],
            "versions": {"a": "1"},
        }
        self.masks = [
            skeletal.Mask({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in layers.items()}, told),
            skeletal.Mask({"w": torch.ones(3)}),
            skeletal.Mask({f"layer{n}.weight": torch.zeros(2, n) for n in range(20)}, {"nested": [[{"a": None}]]}),
        ]
        self.valid = []
        for mask in self.masks:
            mask.save(self.path)
            self.valid.append(self.path.read_bytes())

    def make(self, chance: random.Random) -> bytes:
        """The content of a file."""
        kind = chance.random()
        if kind < 0.05:
            return chance.randbytes(chance.randrange(2000))
        content = chance.choice(self.valid)
        return mutate_bytes(content, self.valid, chance) if kind < 0.5 else self.forge(content, chance)

    def forge(self, content: bytes, chance: random.Random) -> bytes:
        """Change what the file says of itself, and make its sizes and, mostly, its checksum fit again."""
        size = struct.unpack("<Q", content[:8])[0]
        outer, data = json.loads(content[8 : 8 + size]), content[8 + size :]
        inner = json.loads(outer["__metadata__"]["skeletal"])
        for _ in range(chance.choice([1, 1, 2, 5])):
            part = chance.choice(["metadata", "metadata", "metadata", "shapes", "shapes", "all", "outer"])
            if part == "outer":
                outer = mutate_tree(outer, chance)
            elif part == "all" or not isinstance(inner, dict):
                inner = mutate_tree(inner, chance)
            else:
                inner[part] = mutate_tree(inner.get(part), chance)
        if data and chance.random() < 0.2:
            at = chance.randrange(len(data))
            data = data[:at] + chance.randbytes(1) + data[at + 1 :]
        if isinstance(inner, dict) and chance.random() < 0.9:
            try:
                bits = {
                    name: torch.tensor(list(data[slice(*where["data_offsets"])]), dtype=torch.uint8)
                    for name, where in outer.items()
                    if name != "__metadata__"
                }
                inner["sha256"] = maskfile._digest(inner, bits)
            except (KeyError, TypeError, ValueError, AttributeError, UnicodeError, RuntimeError):
                pass  # beyond repair: it stays as it is
        if isinstance(outer, dict) and isinstance(outer.get("__metadata__"), dict):
            text = json.dumps(inner)
            if chance.random() < 0.05:  # a name twice
                text = text.replace("{", '{"shapes": {}, ', 1)
            outer["__metadata__"]["skeletal"] = text
        header = json.dumps(outer).encode()
        return struct.pack("<Q", len(header)) + header + data

    def read(self, content: bytes, chance: random.Random) -> None:
        """Read it, and look hard at what is accepted."""
        self.path.write_bytes(content)
        mask = skeletal.Mask.load(self.path)
        for keep in mask.values():
            assert keep.dtype == torch.bool and keep.device.type == "cpu" and keep.is_contiguous()
        assert 0 <= mask.kept <= mask.total <= 8 * len(content) and len(mask) > 0
        for share in mask.densities().values():
            assert share is None or 0 <= share <= 1
        str(mask).encode(), repr(mask).encode()
        if chance.random() < 0.02:
            digest = mask.digest
            mask.save(self.path)
            again = skeletal.Mask.load(self.path)
            assert again == mask and again.digest == digest and list(again) == list(mask)


class Configs:
    """`skeletal --config`: the TOML reader, and for some cases the command line's own reading of what it found."""

    refusals = (ValueError, CycloptsError)

    def __init__(self, folder: Path, parses: float) -> None:
        self.path, self.parses = folder / "config.toml", parses
        self.valid = [
            b'preset = "quick"\nmodel = "vgg-mini"\ndata = "digits"\nseed = 3\ndensity = 0.05\nsteps = 60 # T\n',
            b'method = "snip"\nsparsity = 0.98\nmilestones = [0.5, 0.75]\nbf16 = true\nlr = 0.1\nschedule = "linear"\n',
            b'name = "m"\nout = "runs"\ndata_dir = "d"\nweight_decay = 5e-4\n[table]\nx = 1\n[[list]]\ny = {a = [1]}\n',
        ]

    def make(self, chance: random.Random) -> bytes:
        """The content of a file."""
        kind = chance.random()
        if kind < 0.05:
            return chance.randbytes(chance.randrange(300))
        if kind < 0.55:
            return mutate_bytes(chance.choice(self.valid), self.valid, chance)
        lines = []
        for field in chance.sample([f for record in (Setup, Pruning, Training) for f in fields(record)], 4):
            value = chance.choice(STRANGE)
            if isinstance(value, str | list | bool | int | float) and not (isinstance(value, float) and value != value):
                lines.append(f"{field.name} = {json.dumps(value)}")
            else:
                lines.append(f"{field.name} = {chance.choice(['nan', 'inf', '1979-05-27', '{}', '{x = 1}', '0x1F'])}")
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def read(self, content: bytes, chance: random.Random) -> None:
        """Read it, and look hard at what is accepted."""
        self.path.write_bytes(content)
        command = chance.choice(["run", "prune", "train"])
        parsing = chance.random() < self.parses
        app.config = (config_file.read(self.path, [command]),)
        if not parsing:
            return
        _, bound, ignored = app.parse_args([command], exit_on_error=False, print_error=False)
        assert not ignored
        for record in bound.arguments.values():
            if isinstance(record, Pruning | Training):
                full = resolve(record, "quick")
                left = {f.name for f in fields(full) if getattr(full, f.name) is None}
                assert left <= {"sparsity", "micro_batch"}, left


class Checkpoints:
    """`skeletal.harness.store.statefile.load`."""

    refusals = (ValueError,)

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, statefile.path_in(folder)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        self.state = {
            "settings": {"lr": 0.1, "milestones": (0.5,)}, "engine": {"asked": "dense"}, "model": model.state_dict(),
            "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 1}, "epoch": 1, "batch": 2,
            "tally": {"loss": 0.0, "top1": 0, "top5": 0, "examples": 0}, "epoch_seconds": 0.0, "seconds": 1.0,
            "rng": torch.get_rng_state(), "cuda_rng": None,
        }  # fmt: skip
        statefile.save(folder, self.state)
        self.valid = [self.path.read_bytes()]

    def make(self, chance: random.Random) -> bytes:
        """The content of a file."""
        kind = chance.random()
        if kind < 0.05:
            return chance.randbytes(chance.randrange(3000))
        if kind < 0.65:
            return mutate_bytes(self.valid[0], self.valid, chance)
        return self.forge(chance)

    def forge(self, chance: random.Random) -> bytes:
        """Damage one entry, the pickle mostly, in an archive whose checksums are right."""
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self.valid[0])) as old, zipfile.ZipFile(made, "w") as new:
            victim = chance.choice([n for n in old.namelist() if chance.random() < 0.3 or n.endswith("data.pkl")])
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutate_bytes(content, [content], chance) if name == victim else content)
        return made.getvalue()

    def read(self, content: bytes, chance: random.Random) -> None:
        """Read it, and look hard at what is accepted."""
        self.path.write_bytes(content)
        state = statefile.load(self.folder)
        assert state is not None and state["format"] == statefile.FORMAT and state["epoch"] >= 0
        assert all(isinstance(value, torch.Tensor) for value in state["model"].values())


def fuzz(name: str, target: Any, cases: int, seed: int, only: int | None) -> tuple[Counter[str], int, float]:
    """Outcomes, number of findings and seconds of that many cases."""
    outcomes: Counter[str] = Counter()
    findings, start = 0, perf_counter()
    for case in range(cases) if only is None else [only]:
        chance = random.Random(f"{seed} {name} {case}")
        content = target.make(chance)
        if only is not None:
            print(content)
        try:
            target.read(content, chance)
            outcomes["accepted"] += 1
        except target.refusals as error:
            assert str(error)
            outcomes["refused"] += 1
        except Exception:
            findings += 1
            if findings <= 5:
                print(f"finding, --seed {seed} --only {name}:{case}", file=sys.stderr)
                traceback.print_exc()
    return outcomes, findings, perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=100_000)
    parser.add_argument("--configs", type=int, default=100_000)
    parser.add_argument("--parses", type=int, default=3_000, help="of the configs, through the whole command line")
    parser.add_argument("--checkpoints", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case again, as masks:1234")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    only, number = asked.only.split(":") if asked.only else (None, "0")

    cases = {"masks": asked.masks, "configs": asked.configs, "checkpoints": asked.checkpoints}
    makers: dict[str, Callable[[Path], Any]] = {
        "masks": Masks,
        "configs": lambda folder: Configs(folder, asked.parses / max(asked.configs, 1)),
        "checkpoints": Checkpoints,
    }
    print(
        f"{date.today()}  {platform.machine()}, one thread; torch {torch.__version__}, safetensors"
        f" {safetensors.__version__}, Python {platform.python_version()}; seed {asked.seed}"
    )
    print(f"{'reader':12s}{'cases':>9s}{'refused':>9s}{'accepted':>9s}{'findings':>9s}{'seconds':>9s}{'most MiB':>10s}")
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, count in cases.items():
            if not count or only not in (None, name):
                continue
            outcomes, findings, seconds = fuzz(
                name, makers[name](Path(folder)), count, asked.seed, int(number) if only else None
            )
            total += findings
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name:12s}{sum(outcomes.values()) + findings:9,}{outcomes['refused']:9,}{outcomes['accepted']:9,}"
                f"{findings:9,}{seconds:9.0f}{most:10.0f}"
            )
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
