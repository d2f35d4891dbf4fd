import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import skeletal


@pytest.fixture
def masks(cli):
    for method, density in (("random", 0.1), ("magnitude", 0.01)):
        assert cli("prune", "--method", method, "--density", density, "--out", f"{method}.safetensors").status == 0
    return ["random.safetensors", "magnitude.safetensors"]


def test_show_one_mask(cli, masks):
    shown = cli("show", masks[0])
    assert shown.status == 0 and shown.err == ""
    for part in ("features.0.weight", "32x1x3x3", "kept 47,158 of 471,584", "method: random", "network: vgg-mini"):
        assert part in shown.out


def test_show_says_how_a_mask_was_found_in_words_and_nothing_of_what_there_is_not(cli, masks):
    shown = cli("show", masks[0]).out
    for raw in ("None", "[]", "{", "Sequential", "True", "False"):
        assert raw not in shown, raw
    assert f"versions: skeletal {skeletal.__version__}, torch {torch.__version__}\n" in shown
    assert "network: vgg-mini\n" in shown and "seed: 0\n" in shown and "connected: yes\n" in shown


def test_show_several_masks_side_by_side(cli, masks):
    lines = cli("show", *masks).out.splitlines()
    assert lines[0].split() == ["layer", "weights", "random", "magnitude"]
    kept = next(line for line in lines if line.startswith("kept"))
    assert kept.split() == ["kept", "471,584", "47,158", "4,716"]
    markdown = cli("show", *masks, "--markdown").out.splitlines()
    assert markdown[1] == "|---|---:|---:|---:|" and all(line.count("|") == 5 for line in markdown)
    assert "| random |" in " ".join(cli("show", masks[0], "--markdown").out.split())


def test_show_as_json(cli, masks):
    shown = cli("show", *masks, "--json").json
    assert list(shown) == ["random", "magnitude"]
    assert sum(shown["magnitude"]["kept"].values()) == 4_716 and shown["magnitude"]["density"] == 0.01


def test_show_draws(cli, masks):
    assert "drawn into figures/layers.png" in cli("show", *masks, "--plot", "figures/layers.png").out
    assert imread("figures/layers.png").shape[2] == 4
    assert cli("show", *masks, "--plot", "layers.svg").status == 0
    assert "<svg" in Path("layers.svg").read_text()
    refused = cli("show", *masks, "--plot", "layers.gif")
    assert refused.status == 1 and "layers.gif" in refused.err and ".png" in refused.err


def test_show_draws_with_json_too(cli, masks):
    assert list(cli("show", *masks, "--plot", "layers.svg", "--json").json) == ["random", "magnitude"]
    assert Path("layers.svg").exists()


def test_masks_of_the_same_name_are_all_shown(cli):
    for seed in (0, 1):
        Path(f"{seed}").mkdir()
        assert cli("prune", "--method", "random", "--seed", seed, "--out", f"{seed}/mask.safetensors").status == 0
    paths = ["0/mask.safetensors", "1/mask.safetensors"]
    assert [mask["seed"] for mask in cli("show", *paths, "--json").json.values()] == [0, 1]
    assert len(cli("show", *paths).out.splitlines()[0].split()) == 4


def test_masks_of_different_networks_are_not_compared(cli, masks):
    out = "other.safetensors"
    assert cli("prune", "--method", "random", "--model", "resnet20-cifar", "--out", out).status == 0
    shown = cli("show", masks[0], out)
    assert shown.status == 1 and shown.out == ""
    assert "other" in shown.err and "same network" in shown.err


def test_show_a_run(cli):
    run = ["run", "--epochs", "1", "--batch-size", "256", "--engine", "dense"]
    pruned = cli(*run, "--method", "random", "--json").json
    dense = cli(*run, "--method", "dense", "--json").json
    shown = cli("show", pruned["folder"])
    for part in (f"top-1 {pruned['test']['top1']:.2f}%", "features.0.weight", "random: kept 47,158"):
        assert part in shown.out
    both = cli("show", pruned["folder"], dense["folder"])
    assert both.status == 0 and f"top-1 {dense['test']['top1']:.2f}%" in both.out
    assert list(cli("show", pruned["folder"], "--json").json) == [Path(pruned["folder"]).name]
    (Path(dense["folder"]) / "result.json").unlink()
    unfinished = cli("show", dense["folder"])
    assert unfinished.status == 1 and dense["folder"] in unfinished.err


def test_of_several_paths_those_that_hold_nothing_are_passed_over(cli, masks):
    """As the shell makes of runs/*: a mask, logs, another program's file, a run that has only begun."""
    begun = Path(cli("run", "--epochs", "1", "--batch-size", "512", "--method", "dense", "--json").json["folder"])
    (begun / "result.json").unlink()
    (begun.parent / "logs").mkdir()
    (begun.parent / "mlflow.db").write_text("SQLite format 3")
    others = sorted(begun.parent.iterdir())
    assert {path.name for path in others} == {"logs", "mlflow.db", begun.name}
    shown = cli("show", masks[0], *others)
    assert shown.status == 0 and cli("show", masks[0]).out.startswith(shown.out)
    for path in others:
        assert len([line for line in shown.err.splitlines() if f"passed over: {path} " in line]) == 1
    nothing = cli("show", *others)
    assert nothing.status == 1 and all(str(path) in nothing.err for path in others)
    assert cli("show", masks[0], "runs/mine").status == 1  # misspelt, perhaps
    damaged = Path("damaged.safetensors")
    damaged.write_text("cut off")
    assert cli("show", masks[0], damaged).status == 1
    assert cli("compare", *others).err.startswith(f"passed over: {begun.parent / 'mlflow.db'} is not a folder")


def test_doctor(cli, tmp_path):
    text, found = cli("doctor"), cli("doctor", "--json", "--data-dir", "elsewhere").json
    assert text.status == 0 and text.err == ""
    assert list(found) == ["versions", "machine", "data", "networks", "presets"]
    for section, entries in found.items():
        assert f"\n{section}\n" in "\n" + text.out
        for key in entries:
            assert f"  {key} " in text.out
    assert found["data"]["digits"] == "embedded" and "elsewhere" in found["data"]["cifar10"]
    assert found["machine"]["cores"] >= 1 and found["presets"]["cifar10"].startswith("350 epochs")
    assert json.loads(json.dumps(found)) == found and list(tmp_path.iterdir()) == []


def test_diagnose_and_repair(cli):
    assert cli("prune", "--method", "snip", "--density", "0.005", "--out", "snip.safetensors").status == 0
    shown = cli("diagnose", "snip.safetensors")
    assert shown.status == 0, shown.err
    assert "no: this skeleton cannot learn" in shown.out and "MACs per example, training" in shown.out
    found = cli("diagnose", "snip.safetensors", "--json").json
    assert found["connected"] is False and found["effective"] == 0
    mended = cli("diagnose", "snip.safetensors", "--repair", "20", "--out", "mended.safetensors")
    assert mended.status == 0 and "repaired: " in mended.out and "features.23.weight +" in mended.out
    before, after = (skeletal.Mask.load(name) for name in ("snip.safetensors", "mended.safetensors"))
    assert after.kept == before.kept and not after.empty_layers
    for mistake in (["--repair", "1"], ["--out", "x"], ["--repair", "1", "--out", "mended.safetensors"]):
        assert cli("diagnose", "snip.safetensors", *mistake).status == 1


def test_diagnose_a_mask_that_does_not_tell_its_network(cli):
    skeletal.Mask({"w": torch.ones(2, 2)}).save("m.safetensors")
    shown = cli("diagnose", "m.safetensors")
    assert shown.status == 1 and "--model" in shown.err
