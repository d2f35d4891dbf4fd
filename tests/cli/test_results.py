import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import skeletal
from skeletal.harness.comparison.compare import outcomes
from skeletal.harness.comparison.row import labels, row_of
from skeletal.harness.ledger import Cost, Ledger
from skeletal.harness.runs import export
from skeletal.harness.store.folders import RunFolder


def leave(root, method, density, seed, top1, asked=None, **config):
    """A finished run, without the running."""
    settings = {"model": "vgg-mini", "data": "digits", "seed": seed, "method": method, "lr": 0.1, "epochs": 3}
    if method != "dense":
        settings["density"] = asked or density
    folder = RunFolder.open(Path(root), f"{method}-{density}", settings | config)
    test = {"top1": top1, "top5": 100.0, "loss": 1.0}
    left = {"density": density, "kept": round(density * 471_584), "prunable": 471_584, "empty_layers": []}
    folder.finish({**folder.config, **left, "test": test, "seconds": 30.0 + seed, "epochs": 3})
    return folder.path


@pytest.fixture
def runs(cli):
    places = {
        "dense": leave("runs", "dense", 1.0, 0, 97.0),
        "force": leave("runs/deep/deeper", "force", 0.1, 0, 95.5),
        "again": leave("runs/deep", "force", 0.1, 1, 96.5, lr=0.05),
        "snip": leave("runs", "snip", 0.01, 0, 40.25),
    }
    other = Path("runs/language-model")
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (Path("runs") / "notes.txt").write_text("not a run")
    begun = RunFolder.open(Path("runs"), "begun", {"model": "vgg-mini", "data": "digits", "seed": 5, "method": "force",
                                                   "density": 0.1, "epochs": 3})  # fmt: skip
    begun.append({"epoch": 0})
    return places | {"begun": begun.path}


def folders(shown):
    return [row["folder"] for row in shown.json]


def test_a_row_a_run_the_best_first_whatever_else_lies_there(cli, runs):
    shown = cli("compare", "--json")
    assert folders(shown) == [str(runs[name]) for name in ("dense", "again", "force", "snip", "begun")]
    text = cli("compare", "runs")
    assert text.status == 0 and text.err == "" and text.out.startswith("5 runs of vgg-mini on digits\n")
    head, best, *_, last = text.out.split("\n\n")[1].splitlines()
    assert head.split() == ["method", "sparsity", "seed", "epochs", "accuracy", "seconds", "folder"]
    assert best.split() == ["dense", "0", "0", "3", "97.00", "30.0", str(runs["dense"])]
    assert last.split() == ["force", "90", "5", "1", "of", "3", "-", "-", str(runs["begun"])]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--filter", "method=FORCE", "--sort", "seed"], ["force", "again", "begun"]),
        (["--filter", "density<0.1"], ["snip"]),
        (["--filter", "accuracy >= 95.5", "--sort", "accuracy", "--reverse"], ["force", "again", "dense"]),
        (["--filter", "lr=0.10", "--filter", "method!=dense"], ["force", "snip"]),
        (["--filter", "sparsity>=90", "--sort", "folder"], ["begun", "force", "again", "snip"]),
    ],
)
def test_filter_and_sort(cli, runs, options, names):
    found = folders(cli("compare", "runs", *options, "--json"))
    assert found == [str(runs[name]) for name in names]


@pytest.mark.parametrize(
    "condition", ["density=0.02", "density<=0.02", "density>=0.02", "density<0.0204", "sparsity=98", "sparsity>=98"]
)
def test_a_density_is_found_by_the_number_that_is_shown(cli, condition):
    path = str(leave("runs", "force", 0.0200007, 0, 90.0, asked=0.02))
    leave("runs/more", "force", 0.0204, 0, 90.0)
    assert path in folders(cli("compare", "--filter", condition, "--json"))
    for other in ("density!=0.02", "density<0.02", "density>0.02", "sparsity<98", "density=0.02001"):
        assert path not in cli("compare", "--filter", other, "--json").out
    tiny = str(leave("runs", "snip", 0.000005, 0, 90.0))
    assert folders(cli("compare", "--filter", "sparsity=99.9995", "--json")) == [tiny]


def test_runs_of_other_settings_are_no_seeds_of_each_other(cli):
    for seed in (0, 1):
        leave(f"runs/{seed}", "force", 0.1, seed, 90.0 + seed)
        leave(f"runs/{seed}/long", "force", 0.1, seed, 94.0 + seed, steps=300, test_every=seed)
        leave(f"runs/{seed}/channels", "force", 0.09 + 0.01 * seed, seed, 80.0 + seed, asked=0.1, pattern="channels")
    rows = [row_of(RunFolder.at(file.parent)) for file in sorted(Path("runs").rglob("config.json"))]
    means = {outcome.method: (outcome.density, outcome.accuracy) for outcome, _ in outcomes(rows)}
    assert means == {
        "force": (0.1, 90.5),
        "force, steps=300": (0.1, 94.5),
        "force, pattern=channels": (pytest.approx(0.095), 80.5),
    }
    assert "force, pattern=channels" in cli("compare", "runs").out


def test_runs_of_other_lengths_are_no_seeds_of_each_other_in_a_figure(cli):
    for epochs, top1 in ((3, 60.0), (30, 90.0)):
        leave(f"runs/{epochs}", "dense", 1.0, 0, top1 + 1, epochs=epochs)
        leave(f"runs/{epochs}", "force", 0.1, 0, top1, epochs=epochs)
    leave("runs", "snip", 0.1, 0, 50.0)
    assert cli("compare", "runs", "--plot", "a.svg").status == 0
    drawn = Path("a.svg").read_text()
    for label in ("force, epochs=3", "force, epochs=30", "dense, epochs=3", "dense, epochs=30", "snip"):
        assert f">{label}<" in drawn, label


def test_a_length_for_each_density_is_one_curve(cli):
    for density, epochs in ((0.1, 3), (0.05, 6)):
        leave("runs", "force", density, 0, 60.0, epochs=epochs)
    assert cli("compare", "runs", "--plot", "a.svg").status == 0
    drawn = Path("a.svg").read_text()
    assert ">force<" in drawn and "epochs=" not in drawn


def by_label(place):
    found = [row_of(RunFolder.at(file.parent)) for file in sorted(Path(place).rglob("config.json"))]
    seeds = {}
    for row, label in zip(found, labels(found), strict=True):
        seeds.setdefault(label, []).append((row["density_asked"], row["seed"]))
    return {label: sorted(those) for label, those in seeds.items()}


def test_what_follows_from_the_density_makes_no_other_curve(cli):
    for density, rounds in ((0.8, 1), (0.64, 2)):
        leave("runs", "imp", density, 0, 60.0, steps=rounds)
    leave("runs/other", "imp", 0.64, 0, 60.0, steps=5)
    assert by_label("runs") == {"imp": [(0.64, 0), (0.8, 0)], "imp, steps=5": [(0.64, 0)]}


def test_gradual_pruning_to_several_densities_is_one_curve_for_each_it_begins_with(cli):
    for end in (0.3, 0.1):
        leave("dense", "dense-gradual", end, 0, 60.0, asked=1.0, update="gradual", update_density=end)
        for start in (0.9, 0.5):
            how = {"asked": start, "update": "gradual", "update_density": end}
            leave(f"from/{start}", "snip-gradual", end, 0, 60.0, **how)
    assert by_label("dense") == {"dense-gradual": [(0.1, 0), (0.3, 0)]}
    assert by_label("from") == {
        "snip-gradual, starting_density=0.9": [(0.1, 0), (0.3, 0)],
        "snip-gradual, starting_density=0.5": [(0.1, 0), (0.3, 0)],
    }
    rows = [row_of(RunFolder.at(file.parent)) for file in Path("from").rglob("config.json")]
    assert all(len(group) == 1 for _, group in outcomes(rows))


def test_what_one_command_does_in_one_and_two_do_in_turn_is_one_curve(cli):
    how = ["--method", "snip", "--density", 0.3, "--prune-batch-size", 32]
    train = ["--epochs", 1, "--batch-size", 512, "--engine", "dense", "--out", "both", "--device", "cpu"]
    best = ["--best-of", 2, "--batches-per-step", 2]
    for seed, more in ((0, []), (1, ["--recompute"]), (0, best), (1, best), (0, ["--as-in", "force-code"])):
        mask = f"mask-{seed}{''.join(map(str, more))}.safetensors"
        assert cli("prune", *how, *more, "--seed", seed, "--out", mask, "--device", "cpu").status == 0
        assert cli("train", "--mask", mask, *train).status == 0
    for seed, more in ((2, []), (2, best), (2, ["--loss", "nll"])):
        assert cli("run", *how, *train, *more, "--seed", seed).status == 0
    assert by_label("both") == {
        "snip, batches_per_step=1": [(0.3, seed) for seed in (0, 1, 2)],
        "snip, batches_per_step=2, best_of=2": [(0.3, seed) for seed in (0, 1, 2)],
        "snip, batches_per_step=1, loss=nll": [(0.3, seed) for seed in (0, 2)],
    }


def test_runs_with_masks_from_files_are_seeds_of_each_other_as_they_were_found(cli):
    train = ["--epochs", 1, "--batch-size", 512, "--device", "cpu", "--engine", "dense", "--out", "masked"]
    for seed, steps in ((0, 2), (1, 2), (0, 3)):
        mask = f"{seed}-{steps}.safetensors"
        options = ["--method", "force", "--density", 0.2, "--seed", seed, "--device", "cpu"]
        assert cli("prune", *options, "--steps", steps, "--out", mask).status == 0
        assert cli("train", "--mask", mask, "--seed", seed, *train).status == 0
    found = [row_of(RunFolder.at(place)) for place in sorted(Path("masked").iterdir())]
    by_label = {}
    for row, label in zip(found, labels(found), strict=True):
        by_label.setdefault(label, set()).add(row["seed"])
    assert by_label == {"force, steps=2": {0, 1}, "force, steps=3": {0}}
    assert cli("train", "--mask", "0-2.safetensors", "--seed", 5, *train).status == 0  # on other weights than its own
    found = [row_of(RunFolder.at(place)) for place in sorted(Path("masked").iterdir())]
    assert "force, mask_seed=0, steps=2" in labels(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--filter", "methd=force"], "Did you mean 'method'?"),
        (["--filter", "force"], "NAME=VALUE"),
        (["--filter", "density<low"], "not a number"),
        (["--filter", "method=grasp"], "none of 5 runs"),
        (["--sort", "acuracy"], "Did you mean 'accuracy'?"),
        (["--csv", "--latex"], "choose one"),
        (["nowhere"], "nowhere"),
        (["runs/language-model"], "no runs in"),
    ],
)
def test_what_is_no_comparison(cli, runs, options, said):
    shown = cli("compare", *options)
    assert shown.status == 1 and said in shown.err and "delete" not in shown.err


def test_for_other_programs_and_papers(cli, runs):
    rows = list(csv.DictReader(cli("compare", "--csv").out.splitlines()))
    assert len(rows) == 5 and rows[1]["accuracy"] == "96.5" and rows[1]["density"] == "0.1"
    assert rows[-1]["accuracy"] == "" and rows[0]["model"] == "vgg-mini"
    assert cli("compare", "--markdown").out.splitlines()[3].startswith("|---|")
    assert cli("compare", "--latex").out.startswith("\\begin{tabular}")


def test_a_figure_of_one_network(cli, runs):
    assert "drawn into a.png" in cli("compare", "--plot", "a.png").out
    assert imread("a.png").shape[2] >= 3
    leave("runs", "force", 0.1, 9, 50.0, model="lenet5")
    refused = cli("compare", "--plot", "a.png")
    assert refused.status == 1 and "lenet5 on digits, vgg-mini on digits" in refused.err


def with_cost(root, method, density, seed, top1, finding, epochs):
    """A finished run that records its cost: its rows are (macs, test top-1 or None)."""
    path = leave(root, method, density, seed, top1, test_every=1)
    folder = RunFolder.at(path)
    for epoch, (macs, tested) in enumerate(epochs):
        row = {"epoch": epoch, "seconds": 5.0, "macs_kept": macs, "macs_dense": 10 * macs}
        folder.append(row if tested is None else row | {"test_top1": tested})
    training = Cost(70, 0, epochs[-1][0], 10 * epochs[-1][0], 0, 15.0, 3 << 20)
    ledger = Ledger(Cost(7, finding, finding, 0, 0, 1.5, 5 << 20), training, Cost(seconds=0.5))
    folder.finish(folder.result() | {"cost": ledger.record()})
    return path


@pytest.fixture
def paid(cli):
    return {
        "dense": with_cost("paid", "dense", 1.0, 0, 97.0, 0, [(30_000, 70.0), (60_000, None), (90_000, 97.0)]),
        "snip": with_cost("paid/0", "snip", 0.1, 0, 90.0, 500, [(3_000, 60.0), (6_000, 80.0), (9_000, 90.0)]),
        "lucky": with_cost("paid/1", "snip", 0.1, 1, 96.0, 500, [(3_000, 61.0), (6_000, 81.0), (9_000, 96.0)]),
        "force": with_cost("paid", "force", 0.1, 0, 95.0, 3_000, [(3_000, 65.0), (6_000, 85.0), (9_000, 95.0)]),
        "random": with_cost("paid", "random", 0.1, 0, 80.0, 0, [(4_000, None), (7_000, None), (9_600, 80.0)]),
        "old": leave("paid", "magnitude", 0.1, 0, 99.0),
    }


def test_costs_have_columns_and_runs_of_earlier_versions_blanks(cli, paid):
    text = cli("compare", "paid", "--sort", "total_macs").out
    head, *lines = text.split("\n\n")[1].splitlines()
    assert head.split()[-5:] == ["finding_macs", "training_macs", "total_macs", "memory", "folder"]
    (force,) = (line for line in lines if str(paid["force"]) in line)
    assert force.split()[-9:-1] == ["3", "k", "9", "k", "12", "k", "5.24", "MB"]
    assert "macs: multiply-adds" in text
    assert lines[-1].split()[-5:-1] == ["-"] * 4 and str(paid["old"]) in lines[-1]
    rows = {row["folder"]: row for row in csv.DictReader(cli("compare", "paid", "--csv").out.splitlines())}
    force, old = rows[str(paid["force"])], rows[str(paid["old"])]
    assert (force["total_macs"], force["dense_macs"], force["memory"]) == ("12000", "93000", str(5 << 20))
    assert old["total_macs"] == old["memory"] == ""
    assert "finding\\_macs" in cli("compare", "paid", "--latex").out
    assert " 12 k |" in cli("compare", "paid", "--markdown").out


def test_the_front_is_what_nothing_beats_by_the_means_over_seeds(cli, paid):
    found = cli("compare", "paid", "--pareto", "--json")
    # snip's mean is 93.0 at 9,500; force is better for more, dense best; random costs more than snip, and is worse.
    assert set(folders(found)) == {str(paid[name]) for name in ("dense", "snip", "lucky", "force")}
    assert "on the Pareto front" in cli("compare", "paid", "--pareto").out
    refused = cli("compare", "paid", "--pareto", "--filter", "method=magnitude")
    assert refused.status == 1 and "records what it cost" in refused.err


def test_an_equal_budget_takes_the_last_tested_epoch_within_it(cli, paid):
    found = {row["folder"]: row for row in cli("compare", "paid", "--at-most-macs", "9500", "--json").json}
    assert set(found) == {str(paid[name]) for name in ("snip", "lucky", "force")}  # random was tested beyond it
    assert found[str(paid["lucky"])]["accuracy"] == 96.0
    force = found[str(paid["force"])]
    assert (force["accuracy"], force["epochs"], force["total_macs"], force["seconds"]) == (85.0, 2, 9_000, 10.0)
    assert force["dense_macs"] == 3_000 + 60_000
    text = cli("compare", "paid", "--at-most-macs", "9.5e3").out
    assert text.startswith("3 runs of vgg-mini on digits, within 9500 multiply-adds (3 left out)") and "2 of 3" in text
    refused = cli("compare", "paid", "--at-most-macs", "10")
    assert refused.status == 1 and "none of 6 runs was tested within 10 multiply-adds" in refused.err


def test_a_figure_of_accuracy_and_cost(cli, paid):
    assert "drawn into a.png" in cli("compare", "paid", "--plot", "a.png").out
    wide = imread("a.png").shape
    cli("compare", "paid", "--filter", "method=magnitude", "--plot", "b.png")
    assert wide[1] > 1.5 * imread("b.png").shape[1]  # which has no panel of costs
    drawn = cli("compare", "paid", "--plot", "a.svg")
    text = Path("a.svg").read_text()
    assert drawn.status == 0 and "multiply-adds" in text and "ringed: Pareto front" in text


def test_show_prints_the_ledger(cli, paid):
    text = cli("show", paid["force"]).out
    head, finding, training, evaluation = text.split("\n\n")[1].splitlines()
    assert head.split()[:4] == ["cost", "of", "examples", "forward"]
    assert finding.split() == ["finding", "7", "3", "k", "0", "3", "k", "1.5", "s", "5.24", "MB"]
    assert training.split()[:2] == ["training", "70"] and evaluation.split()[0] == "evaluation"
    assert "cost of" not in cli("show", paid["old"]).out


def test_show_of_a_folder_of_runs_and_of_other_things(cli, runs):
    (Path("runs") / "snip.safetensors").touch()
    shown = cli("show", "runs")
    assert shown.status == 0 and shown.out.count("vgg-mini on digits") == 4
    for path in ("runs/language-model", runs["begun"]):
        refused = cli("show", path)
        assert refused.status == 1 and "delete" not in refused.err and str(path) in refused.err


@pytest.mark.slow
def test_seeds_then_load_then_export(cli):
    small = ["--epochs", "1", "--batch-size", "512", "--engine", "dense", "--method", "random", "--density", "0.004"]
    several = cli("run", *small, "--seeds", "2", "--json").json
    top1 = [run["test"]["top1"] for run in several["runs"]]
    assert [run["seed"] for run in several["runs"]] == [0, 1]
    assert several["test_top1"]["mean"] == pytest.approx(sum(top1) / 2)
    assert several["test_top1"]["deviation"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    again = cli("run", *small, "--seeds", "2")
    assert again.err.count("already finished: ") == 2 and "(mean and standard deviation of 2 seeds)" in again.out

    path = Path(several["runs"][0]["folder"])
    run = skeletal.load_run(path)
    assert run.result["test"]["top1"] == top1[0] and run.config["epochs"] == 1 and len(run.metrics) == 1
    assert run.shape == (1, 8, 8) and not run.network.training
    run.mask.check(run.network)
    images = torch.randn(5, *run.shape)
    done = cli("export", path, "--torch", "--out", "small.pt2", "--json").json
    assert done["after"] < done["before"] == sum(p.numel() for p in run.network.parameters())
    with torch.no_grad():
        found, wanted = torch.export.load("small.pt2").module()(images), run.network(images)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert sorted(file.name for file in Path().iterdir()) == ["runs", "small.pt2"]  # no draft

    refused = cli("export", path, "--torch", "--out", "small.pt2")
    assert refused.status == 1 and "small.pt2 already exists: choose another --out, or pass --overwrite" in refused.err

    onnxruntime = pytest.importorskip("onnxruntime")
    told = cli("export", path, "--onnx")
    assert told.status == 0 and "takes normalized images (batch, 1, 8, 8)" in told.out
    session = onnxruntime.InferenceSession(path / "compact.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)

    for options in ([], ["--onnx", "--torch"]):
        assert "--onnx or --torch" in cli("export", path, *options).err
    shutil.rmtree(path / "checkpoint")
    (path / "model.safetensors").unlink()
    unfinished = cli("export", path, "--torch")
    assert unfinished.status == 1 and "has not finished" in unfinished.err
    config = json.loads((path / "config.json").read_text())
    assert config["method"] == "random" and "seeds" not in config


def test_what_was_exported_and_computes_something_else_is_no_file(cli, monkeypatch):
    path = cli("run", "--epochs", "1", "--batch-size", "512", "--method", "dense", "--json").json["folder"]
    monkeypatch.setattr("skeletal.harness.runs.export.compact", None)  # a dense run has no mask to make compact
    writes, runs_it, name = export._FORMS["torch"]
    monkeypatch.setitem(export._FORMS, "torch", (writes, lambda file, images: runs_it(file, images) + 1, name))
    shown = cli("export", path, "--torch")
    assert shown.status == 1 and "other outputs" in shown.err
    assert not [file for file in Path(path).iterdir() if "compact" in file.name]
