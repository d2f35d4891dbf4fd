"""`skeletal diagnose`."""

from pathlib import Path

from skeletal.cli.settings import Flag, check_files, print_json


def diagnose(
    path: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    repair: int = 0,
    out: Path | None = None,
    overwrite: Flag = False,
    json: Flag = False,
) -> None:
    """Show what a mask leaves of its network: paths, dead channels, multiply-adds.

    For example:

        skeletal diagnose force.safetensors
        skeletal diagnose snip.safetensors --repair 1 --out repaired.safetensors

    Parameters
    ----------
    path
        a mask file or a run folder
    model
        network, if the mask does not name it
    data
        data set, for the shape of its images, if the mask does not name it
    data_dir
        path of an image folder; no other data set is read
    repair
        give every layer at least this many weights, taken from the largest layers; needs --out
    out
        file for the repaired mask
    overwrite
        replace an existing file
    json
        print the diagnosis as JSON on stdout

    """
    from skeletal.harness.runs.review import diagnose_mask

    if repair and out is None:
        raise ValueError("--repair makes a new mask: pass --out to say where to save it")
    if out is not None and not repair:
        raise ValueError("--out is where the repaired mask goes: say how many weights a layer gets with --repair")
    check_files(out, overwrite=overwrite)
    mask, found = diagnose_mask(path, model=model, data=data, data_dir=data_dir, repaired=repair)
    if out is not None:
        mask.save(out)
    added = mask.metadata.get("repaired", {})
    if json:
        return print_json(found.to_dict() | {"repaired": added})
    print(found)
    if repair:
        print("\nrepaired: " + (", ".join(f"{layer} +{n}" for layer, n in added.items()) or "nothing was missing"))
        print(f"saved as {out}")
