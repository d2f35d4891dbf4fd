"""`skeletal eval`, `show` and `doctor`: look, change nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from skeletal.cli.settings import Flag, check_files, print_json, summary
from skeletal.core.progress import say


def evaluate(
    run: Path,
    *,
    split: Literal["test", "validation", "train"] = "test",
    data_dir: Path | None = None,
    device: str = "auto",
    engine: Literal["auto", "dense", "sparse"] = "auto",
    json: Flag = False,
) -> None:
    """Test the trained network of a run again, and check it against its mask.

    For example:

        skeletal eval runs/vgg19-cifar-cifar10-force-0.01-1a2b3c4d --data-dir D

    Parameters
    ----------
    run
        a run folder
    split
        images to test on
    data_dir
        folder of the data set
    device
        auto, cpu, cuda, cuda:1, mps
    engine
        what computes a masked network on a CPU; auto uses what trained the run
    json
        print the scores as JSON on stdout

    """
    from skeletal.harness.runs.review import evaluate_run

    scores = evaluate_run(run, split=split, data_dir=data_dir, device=device, engine=engine)
    if json:
        print_json(asdict(scores))
    else:
        print(
            f"{split} top-1 {scores.top1:.2f}%  top-5 {scores.top5:.2f}%  loss {scores.loss:.4f}"
            f"  ({scores.examples:,} images)"
        )


def show(*paths: Path, plot: Path | None = None, markdown: Flag = False, json: Flag = False) -> None:
    """Show masks or runs: layers, how they were found, accuracy, what they cost.

    Given several, shows them side by side, with a column of kept weights for each, and passes over what holds neither
    masks nor results. Given another folder, shows the runs in it, at any depth.

    For example:

        skeletal show force.safetensors
        skeletal show force.safetensors snip.safetensors random.safetensors --plot layers.png

    Parameters
    ----------
    paths
        mask files, run folders, or folders that hold some
    plot
        draw the layers into this file (png, svg or pdf)
    markdown
        print the table as Markdown
    json
        print metadata and kept weights as JSON on stdout

    """
    if not paths:
        raise ValueError("name the mask files or run folders to show")
    check_files(plot=plot)
    from skeletal.core.masks.mask import Mask
    from skeletal.harness.ledger import Cost, Ledger
    from skeletal.harness.output.costs import cost_table
    from skeletal.harness.output.layers import layer_table, of_one_network, plot_layers
    from skeletal.harness.store.folders import MASK, RunFolder, damaged

    masks: dict[str, Mask] = {}
    named, paths = paths, _inside_all(paths)
    stems = [path.name.removesuffix(".safetensors") for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        file = path
        if path.is_dir():
            folder = RunFolder.at(path)
            file = path / MASK
            if folder.finished and not json:
                result = folder.result()
                if "test" in result:  # else it was not trained: what `advise` or `study measure` leaves
                    try:
                        print(summary(result), end="\n\n")
                    except KeyError as missing:
                        raise damaged(path / "result.json", f"{missing.args[0]} is missing") from None
                if (costs := cost_table(Ledger.read(result.get("cost")))).rows:
                    print(costs.shown(markdown=markdown), end="\n\n")
            if not file.exists():
                continue  # a dense run
        masks[stem if stems.count(stem) == 1 else str(path)] = Mask.load(file)
    if plot is not None:
        if not masks:
            raise ValueError("there is no mask to draw: the runs are dense")
        plot_layers(masks, plot)
    if json:
        return print_json({
            name: {"kept": {layer: int(keep.sum()) for layer, keep in mask.items()}, **mask.metadata}
            for name, mask in masks.items()
        })  # fmt: skip
    if len(masks) == 1 and not markdown:
        (mask,) = masks.values()
        print(mask)
        print("\n".join(f"{key}: {value}" for key, value in mask.metadata.items() if key != "cost"))
        if paths == named and not paths[0].is_dir() and (cost := Cost.read(mask.metadata.get("cost"))) is not None:
            print(f"\n{cost_table(Ledger(finding=cost)).text()}")
    elif masks:
        each = [masks] if paths == named else of_one_network(masks)
        print("\n\n".join(layer_table(some, markdown=markdown) for some in each))
    if plot is not None:
        print(f"drawn into {plot}")


class _NothingError(ValueError):
    """A path holds nothing to show."""


def _inside_all(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """What lies at several paths; those that hold nothing are told of and passed over, unless all do."""
    found, nothing = [], []
    for path in paths:
        try:
            found += _inside(path)
        except _NothingError as error:
            nothing.append(str(error))
    if not found:
        raise ValueError("; ".join(nothing))
    for reason in nothing:
        say(f"passed over: {reason}")
    return tuple(found)


def _inside(path: Path) -> list[Path]:
    """The mask file or run folder at a path, or the run folders in the folder there, as far as they hold something.

    Raises:
        _NothingError: there is none.

    """
    from skeletal.core.errors import MaskError
    from skeletal.core.masks.mask import Mask
    from skeletal.harness.store.folders import MASK, RunFolder, is_run
    from skeletal.harness.store.search import runs_below

    if not path.is_dir():
        if path.is_file() and path.suffix != ".safetensors":
            try:
                Mask.load(path)
            except MaskError as error:
                raise _NothingError(str(error)) from None
        return [path]
    folders = [RunFolder.at(path)] if is_run(path) else list(runs_below(path))
    if not folders:
        raise _NothingError(f"{path} is not a run folder and contains none")
    found = [folder.path for folder in folders if folder.finished or (folder.path / MASK).exists()]
    if not found:
        raise _NothingError(f"{path} holds neither a mask nor a result yet")
    return found


def doctor(*, data_dir: Path | None = None, json: Flag = False) -> None:
    """Show what skeletal finds on this machine: torch, cores, networks, data sets.

    For example:

        skeletal doctor --data-dir ../data

    Parameters
    ----------
    data_dir
        look here for data sets, instead of ./data and ~/.cache/skeletal
    json
        print it as JSON on stdout

    """
    from skeletal.harness.runs.doctor import findings

    found = findings(data_dir)
    if json:
        return print_json(found)
    for section, entries in found.items():
        print(section)
        for key, value in entries.items():
            print(f"  {key:24} {value}")
