import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import skeletal
from tests.timeless import timeless

DENSE = ["--engine", "dense"]  # what "auto" measures may differ from run to run
QUICK = ["--epochs", "1", "--batch-size", "256", *DENSE]
METHODS = {
    "force": ["--method", "force", "--steps", "3", "--density", "0.05"],
    "random": ["--method", "random", "--density", "0.05"],
    "dense": ["--method", "dense"],
}


def stamps(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.rglob("*")}


def rows(folder):
    return [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_end_to_end(cli, method):
    first = cli("run", *METHODS[method], *QUICK)
    assert first.status == 0, first.err
    assert "warning" not in first.err and "epoch 1/1" in first.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith(f"vgg-mini-digits-{method}")
    assert str(folder) in first.out

    files = {"config.json", "environment.json", "metrics.jsonl", "checkpoint", "model.safetensors", "result.json"}
    assert {file.name for file in folder.iterdir()} == files | ({"mask.safetensors"} if method != "dense" else set())
    assert max(file.stat().st_mtime_ns for file in folder.iterdir()) == (folder / "result.json").stat().st_mtime_ns
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == method and config["epochs"] == 1 and None not in config.values()
    assert len(rows(folder)) == 1

    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == method and result["epochs"] == 1 and result["seed"] == 0
    assert {"model", "data", "density", "train", "validation", "test", "seconds", "engine"} <= result.keys()
    assert f"{result['test']['top1']:.2f}%" in first.out
    weights = load_file(folder / "model.safetensors")
    if method == "dense":
        assert result["density"] == 1 and "kept" not in result
    else:
        mask = skeletal.Mask.load(folder / "mask.safetensors")
        assert mask.kept == result["kept"] == round(0.05 * 471_584) and result["prunable"] == mask.total
        assert result["connected"] is True and result["empty_layers"] == []
        assert not any(weights[layer][~keep].any() for layer, keep in mask.items())
        assert f"{mask.kept:,} of {mask.total:,}" in first.out

    before = stamps(folder)
    assert cli("eval", folder, "--json").json == result["test"]
    again = cli("run", *METHODS[method], *QUICK)
    assert (again.status, again.out, again.err) == (0, first.out, f"already finished: {folder}\n")
    assert cli("run", *METHODS[method], *QUICK, "--json").json == {"folder": str(folder), **result}
    assert stamps(folder) == before  # nothing was overwritten, nothing trained again


def test_a_finished_run_says_which_engine_trained_it_if_another_is_asked_for(cli):
    quick = ["run", "--method", "random", "--epochs", "1", "--batch-size", "512"]
    assert cli(*quick, "--engine", "dense").status == 0
    for engine, told in (("sparse", True), ("dense", False), ("auto", False)):
        again = cli(*quick, "--engine", engine)
        assert "already finished: " in again.err
        assert ("trained with the engine dense, not sparse: another --out trains it anew" in again.err) is told


def test_a_finished_run_can_still_be_logged(cli):
    folder = Path(cli("run", *METHODS["random"], *QUICK, "--json").json["folder"])
    cli("prune", *METHODS["random"])
    again = [*METHODS["random"], *QUICK, "--log", "csv"]
    assert cli("run", *again).status == 0 and len((folder / "metrics.csv").read_text().splitlines()) == 2
    (folder / "metrics.csv").unlink()
    assert cli("run", *again, "--executor", "local").status == 0 and (folder / "metrics.csv").exists()
    cli("train", "--mask", "mask.safetensors", *QUICK)
    assert cli("train", "--mask", "mask.safetensors", *QUICK, "--log", "csv").status == 0
    assert len(list(Path("runs").glob("*/metrics.csv"))) == 2


@pytest.mark.usefixtures("narrow")
def test_other_settings_are_another_run(cli):
    folders = {
        cli("run", *METHODS["random"], *QUICK, *more, "--json").json["folder"]
        for more in ([], ["--seed", "1"], ["--name", "mine"], ["--device", "cpu", "--workers", "0"])
    }
    assert len(folders) == 3  # where it is computed makes no other run
    assert sum(Path(folder).name.startswith("mine-") for folder in folders) == 1


@pytest.mark.usefixtures("narrow")
def test_a_public_codes_choices_are_in_the_config_and_what_is_said_wins(cli):
    shown = [
        cli("run", "--method", "snip", *QUICK, *more, "--json").json["folder"]
        for more in (["--as-in", "force-code"], ["--loss", "nll"], ["--as-in", "force-code", "--loss", "cross-entropy"])
    ]
    configs = [json.loads((Path(folder) / "config.json").read_text()) for folder in shown]
    assert [config["loss"] for config in configs] == ["nll", "nll", "cross-entropy"]
    assert shown[0] == shown[1] != shown[2]
    mask = skeletal.Mask.load(Path(shown[0]) / "mask.safetensors")
    assert (mask.metadata["as_in"], mask.metadata["loss"]) == ("force-code", "nll_loss")


def test_a_dense_run_has_no_density(cli):
    run = cli("run", "--method", "dense", *QUICK, "--json").json
    assert "0.1" not in Path(run["folder"]).name
    refused = cli("run", "--method", "dense", *QUICK, "--density", "0.5", "--json")
    assert refused.status == 1 and "the method dense prunes nothing: leave --density out" in refused.err


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("how", [["--bf16"], ["--channels-last", "--batch-size", "100"]], ids=" ".join)
def test_eval_scores_as_training_did(cli, how):
    result = cli("run", *METHODS["random"], *QUICK[:2], *DENSE, *how, "--json").json
    assert cli("eval", result["folder"], "--json").json == result["test"]
    assert cli("eval", result["folder"], "--split", "validation", "--json").json == result["validation"]


def test_a_mistake_in_training_is_noticed_before_the_pruning(cli, monkeypatch):
    def pruned(*_: object, **__: object) -> None:
        raise AssertionError("pruned, perhaps for an hour")

    monkeypatch.setattr("skeletal.harness.runs.finding.prune", pruned)
    shown = cli("run", "--epochs", "0")
    assert shown.status == 1 and "epochs" in shown.err


@pytest.mark.usefixtures("narrow")
def test_eval_notices_a_pruned_weight_that_is_not_zero(cli):
    from safetensors.torch import save_file

    folder = Path(cli("run", *METHODS["random"], *QUICK, "--json").json["folder"])
    assert f"{json.loads((folder / 'result.json').read_text())['test']['top1']:.2f}%" in cli("eval", folder).out
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    shown = cli("eval", folder)
    assert shown.status == 1 and "classifier.weight" in shown.err
    (folder / "model.safetensors").write_bytes(b"cut off")
    shown = cli("eval", folder)
    assert shown.status == 1 and "model.safetensors" in shown.err and "damaged" in shown.err
    (folder / "model.safetensors").unlink()
    assert "not finished" in cli("eval", folder).err


def test_prune_then_train_is_run(cli):
    whole = Path(cli("run", *METHODS["force"], *QUICK, "--json").json["folder"])
    pruned = cli("prune", *METHODS["force"], "--out", "force.safetensors")
    assert pruned.status == 0 and pruned.err == ""
    assert "features.0.weight" in pruned.out and "saved as force.safetensors" in pruned.out
    trained = cli("train", "--mask", "force.safetensors", *QUICK)
    assert trained.status == 0 and "warning" not in trained.err
    (parts,) = (folder for folder in Path("runs").iterdir() if folder != whole)
    assert str(parts) in trained.out and "force" in parts.name
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert rows(parts) == rows(whole)
    results = [timeless(json.loads((folder / "result.json").read_text())) for folder in (whole, parts)]
    assert results[0] == results[1]
    assert cli("eval", parts, "--json").json == results[0]["test"]
    before = stamps(parts)
    assert cli("train", "--mask", "force.safetensors", *QUICK).out == trained.out
    assert stamps(parts) == before


def test_train_holds_out_what_the_search_for_its_mask_held_out(cli):
    cli("prune", *METHODS["random"], "--validation", "0.3", "--out", "m.safetensors")
    trained = cli("train", "--mask", "m.safetensors", *QUICK, "--json")
    assert "as the mask was found: --validation 0.3" in trained.err
    cli("prune", *METHODS["random"], "--out", "tenth.safetensors")
    again = cli("train", "--mask", "tenth.safetensors", "--preset", "imagenet", *QUICK)
    assert "as the mask was found: --validation 0.1" in again.err
    assert trained.json["validation"]["examples"] == round(
        0.3 * (trained.json["validation"]["examples"] + trained.json["train"]["examples"])
    )


def test_prune_overwrites_no_mask_unless_told(cli):
    prune = ["prune", "--method", "random", "--out", "m.safetensors"]
    first = cli(*prune, "--json").json
    assert first["out"] == "m.safetensors" and first["kept"] == 47_158 and first["method"] == "random"
    before = Path("m.safetensors").read_bytes()
    refused = cli(*prune, "--seed", "1")
    assert refused.status == 1 and "m.safetensors" in refused.err and "--overwrite" in refused.err
    assert Path("m.safetensors").read_bytes() == before
    assert cli(*prune, "--seed", "1", "--overwrite", "--json").json["seed"] == 1
    assert Path("m.safetensors").read_bytes() != before


def test_a_collapsed_mask_comes_with_a_warning(cli):
    shown = cli("prune", "--method", "snip", "--density", "0.002", "--json")
    assert shown.json["connected"] is False and shown.json["empty_layers"]
    assert shown.err.startswith("warning: no path leads from input to output at density 0.002 with 'snip'")
    assert shown.json["empty_layers"][0] in shown.err


def test_a_mask_of_another_seed_comes_with_a_warning(cli):
    assert cli("prune", "--method", "random").status == 0
    shown = cli("train", "--mask", "mask.safetensors", "--seed", "1", *QUICK)
    assert shown.status == 0
    assert shown.err.startswith("warning: the mask was found with seed 0, this run has 1")


def test_a_mask_brings_its_network_data_and_seed(cli):
    found = ["--model", "VGG11_CIFAR", "--data", "digits", "--seed", "3"]
    refused = cli("prune", "--method", "random", *found)  # too small an image for it
    assert refused.status == 1 and "vgg11-cifar leaves nothing of 8x8 images" in refused.err
    found = ["--model", "RESNET20_CIFAR", "--seed", "3"]
    assert cli("prune", "--method", "Random_ERK", "--density", "0.01", *found).status == 0
    trained = cli("train", "--mask", "mask.safetensors", "--epochs", "1", "--batch-size", "1024", *DENSE)
    assert trained.status == 0 and "warning" not in trained.err
    assert trained.err.startswith("as the mask was found: --model resnet20-cifar --seed 3\n")
    Path("my.toml").write_text("seed = 0\nepochs = 1\nbatch_size = 1024\n")
    other = cli("train", "--mask", "mask.safetensors", "--config", "my.toml", "--out", "other", *DENSE)
    assert other.status == 0 and "as the mask was found: --model resnet20-cifar\n" in other.err
    assert "the mask was found with seed 3, this run has 0" in other.err
    (folder,) = Path("runs").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["data"], config["seed"]) == ("resnet20-cifar", "digits", 3)
    again = cli("train", "--mask", folder, "--epochs", "1", "--batch-size", "1024", *DENSE)
    assert f"already finished: {folder}" in again.err  # a run's folder stands for the mask in it


@pytest.mark.usefixtures("narrow")
def test_names_as_people_write_them_find_the_same_run(cli):
    first = cli("run", *METHODS["random"], *QUICK, "--json").json["folder"]
    again = cli("run", "--method", "RANDOM", "--density", "0.05", "--model", "VGG_Mini", "--data", "Digits", *QUICK)
    assert again.status == 0 and again.err == f"already finished: {first}\n"


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_the_command_that_goes_on(cli, tmp_path):
    settings = ["run", *METHODS["random"], "--epochs", "5", "--batch-size", "512", *DENSE]
    command = [sys.executable, "-c", "from skeletal.cli import main; main()", *settings, "--out", "it's here"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    logs: list[Path] = []
    while not logs or logs[0].read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
        logs = list((tmp_path / "it's here").glob("*/metrics.jsonl"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    parts = logs[0].parent
    assert 2 <= len(rows(parts)) < 5 and (parts / "checkpoint").is_dir() and not (parts / "result.json").exists()
    assert "stopped after epoch" in err and str(parts.relative_to(tmp_path)) in err

    name, *resuming = shlex.split(err.splitlines()[-1])
    assert name == "skeletal"
    resumed = cli(*resuming)
    assert resumed.status == 0 and "epoch 1/5" not in resumed.err and "epoch 5/5" in resumed.err
    assert "the mask is there already" in resumed.err and "resuming at epoch " in resumed.err
    whole = Path(cli(*settings, "--json").json["folder"])
    assert whole.name == parts.name
    assert rows(parts) == rows(whole)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    results = [timeless(json.loads((folder / "result.json").read_text())) for folder in (whole, parts)]
    assert results[0] == results[1]


@pytest.mark.usefixtures("narrow")
def test_ctrl_c_while_pruning(cli, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skeletal.harness.runs.finding.prune", interrupted)
        shown = cli("run", *METHODS["random"], *QUICK)
    assert shown.status == 130 and "interrupted" in shown.err and "Traceback" not in shown.err
    assert cli("run", *METHODS["random"], *QUICK).status == 0
