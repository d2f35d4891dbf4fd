from pathlib import Path

import pytest

from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment, finding
from skeletal.study.beyond import sanity
from skeletal.study.beyond.sanity import ORIGINAL, OTHER_SEED, SanityChecks, answer, table

SMALL = ("--density", 0.05, "--steps", 2, "--prune-batch-size", 32, "--epochs", 1, "--batch-size", 512,
         "--engine", "dense", "--device", "cpu")  # fmt: skip
PLAN = SanityChecks(
    Setup(device="cpu"),
    resolve(Pruning(density=0.05, steps=2, prune_batch_size=32), "quick"),
    resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick"),
    seeds=(0, 1),
    shuffles=1,
)


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_from_masks_to_a_table_and_what_is_finished_is_only_read(cli, monkeypatch):
    done = cli("sanity", *SMALL, "--seeds", 2, "--shuffles", 1)
    assert done.status == 0, done.err
    root = Path("runs/sanity").absolute()
    jobs = [*PLAN.mask_jobs(), *PLAN.jobs(root)]
    for module in (experiment, finding):
        monkeypatch.setattr(module, "create_model", lambda *_: pytest.fail("done again"))
    for job in jobs:
        assert job.folder(root).finished and job.run(root) == job.folder(root).result()
    rows = cli("sanity", *SMALL, "--seeds", 2, "--shuffles", 1, "--json").json
    assert rows == PLAN.results(root) and all(0 <= row["accuracy"] <= 100 for row in rows)

    assert {row["check"] for row in rows} == set(sanity.ABOUT)
    by_name = {(row["name"], row["seed"]): row for row in rows}
    assert len(by_name) == len(rows) == 2 * len(sanity.ABOUT)
    original, redrawn, other = (by_name[name, 0] for name in (ORIGINAL, "other weights", OTHER_SEED))
    assert original["overlap"] == original["saliency"] == redrawn["overlap"] == 1
    assert redrawn["weights"] == other["weights"] == 1 and redrawn["run"] != original["run"]
    assert redrawn["saliency"] != 1 and other["overlap"] < 1
    assert other["run"] == by_name[ORIGINAL, 1]["run"]
    assert "overlap" not in by_name["dense", 0]
    mask = Mask.load(root / redrawn["run"] / "mask.safetensors")
    assert mask == Mask.load(root / original["run"] / "mask.safetensors")

    shown, legend = table(rows).split("\n\n")
    assert shown.count("\n") == len(sanity.ABOUT)
    assert all(name in legend for name in ("overlap", "layers", "saliency", "effective / kept", "path", "accuracy"))
    assert len(answer(rows).splitlines()) == 6
    assert done.out == f"{table(rows)}\n\n{answer(rows)}\n"


@pytest.mark.usefixtures("all_busy")
def test_what_another_process_works_on_is_waited_for_by_the_user(cli):
    done = cli("sanity", *SMALL, "--seeds", 2)
    assert done.status == 1 and "2 runs are being worked on by another process: wait for it" in done.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", 1], "needs at least two different ones"),
        (["--shuffles", 0], "shuffles is 0"),
        (["--method", "snap"], "unknown method 'snap'"),
    ],
)
def test_mistakes(cli, arguments, message):
    done = cli("sanity", *SMALL, *arguments)
    assert done.status == 1 and message in done.err.replace("\n", " ")
