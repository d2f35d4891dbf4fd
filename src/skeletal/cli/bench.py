"""`skeletal bench`."""

from collections.abc import Mapping
from pathlib import Path

from skeletal.cli.settings import Flag, check_files, print_json
from skeletal.core import strict_json
from skeletal.core.files import write_atomically
from skeletal.core.progress import say
from skeletal.harness.config import Setup
from skeletal.harness.limits import check


def bench(
    *,
    model: str | None = None,
    mask: list[Path] | None = None,
    density: list[float] | None = None,
    method: str = "force",
    data: str | None = None,
    batch_size: int = 128,
    baselines: str = "a,b",
    repeat: int = 5,
    threads: int | None = None,
    no_memory: Flag = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: Flag = False,
    plot: Path | None = None,
    json: Flag = False,
) -> None:
    """Time a skeleton against dense networks and other sparse libraries.

    Measures training and inference on images of noise. Contestants take turns in one process; peak memory is measured
    in a fresh process for each.

    For example:

        skeletal bench --model vgg19-cifar --mask force-0.01.safetensors --mask force-0.001.safetensors
        skeletal bench --model resnet50-cifar --density 0.01 --density 0.001 --baselines a,b,d --out bench.json

    Parameters
    ----------
    model
        network; by default that of the first mask, or vgg19-cifar
    mask
        a mask file, or a run folder; repeatable
    density
        without a mask file: find a mask of this density on a batch of noise; repeatable (default 0.01)
    method
        how to find that mask: force (15 steps), random-erk, ...
    data
        data set whose image size, channels and classes to use; by default that of the first mask, or cifar10
    batch_size
        images per step
    baselines
        what to compare with: a masked dense float32; b the best of dense PyTorch in float32 and bfloat16, in both
        memory orders; c torch's CSR products; d SparseProp; e SparseLab's linear layers
    repeat
        rounds; the median counts
    threads
        compute threads; by default torch's choice
    no_memory
        do not measure peak memory, which takes a process for each contestant
    seed
        seed of initial weights and noise
    out
        also write every measurement into this file, as JSON
    overwrite
        replace an existing file
    plot
        draw the roofline into this file (png, svg or pdf)
    json
        print every measurement as JSON on stdout

    """
    import torch

    from skeletal.core.choices import named, require
    from skeletal.core.masks.mask import Mask
    from skeletal.core.pruning.methods import METHODS
    from skeletal.core.pruning.shorthand import expanded
    from skeletal.harness.bench import Setting
    from skeletal.harness.bench import bench as measure
    from skeletal.harness.bench.contestants import CONTESTANTS, OURS
    from skeletal.harness.bench.table import table
    from skeletal.harness.data import SPECS
    from skeletal.harness.store.folders import mask_file

    if mask and density:
        raise ValueError("--mask brings its own density: give --mask or --density, not both")
    data, method = data and named("data set", data, SPECS), named("method", expanded(method)[0], METHODS)
    names = tuple(name.strip() for name in baselines.split(",") if name.strip())
    for name in names:
        require("baseline", name, [key for key in CONTESTANTS if key not in OURS])
    _check({"batch-size": batch_size, "repeat": repeat, "threads": threads})
    check(Setup(seed=seed))
    check_files(out, overwrite=overwrite, plot=plot)
    if threads is not None:
        torch.set_num_threads(threads)
    masks = {}
    for path in mask or []:
        stem = path.name.removesuffix(".safetensors")
        masks[str(path) if stem in masks else stem] = Mask.load(mask_file(path))
    if model is None:
        model = next((m.metadata["network"] for m in masks.values() if "network" in m.metadata), "vgg19-cifar")
    if data is None:
        of_masks = (str(m.metadata.get("data")) for m in masks.values())
        data = next((name for name in of_masks if name in SPECS), "cifar10")
    setting = Setting(model=model, data=data, batch_size=batch_size, seed=seed)
    for wanted in [] if masks else density or [0.01]:
        say(f"finding a mask of density {wanted:g} by {method}, on noise")
        masks[f"{method}-{wanted:g}"] = setting.mask(wanted, method)
    result = measure(setting, masks, baselines=names, repeat=repeat, memory=not no_memory, note=say)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, strict_json.dumps(result, indent=1))
    if plot is not None:
        from skeletal.harness.bench.plot import plot_roofline

        plot_roofline(result, plot)
    if json:
        return print_json(result)
    print(table(result))
    for written in (out, plot):
        if written is not None:
            print(f"written: {written}")


def _check(numbers: Mapping[str, int | None]) -> None:
    """Refuse what would fail only once everything has been measured.

    Raises:
        ValueError: a number below 1.

    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number}; it has to be at least 1")
