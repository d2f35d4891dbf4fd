import json
from pathlib import Path

BENCH = ["bench", "--model", "vgg-mini", "--data", "digits", "--batch-size", "4", "--repeat", "1", "--no-memory"]


def test_bench_finds_a_mask_and_measures(cli):
    done = cli(*BENCH, "--method", "random-erk", "--density", "0.1", "--baselines", "a", "--out", "out/b.json")
    assert done.status == 0, done.err
    for part in ("vgg-mini, batch 4", "masked dense float32", "47,158 of 471,584 weights", "written: out/b.json"):
        assert part in done.out
    assert "finding a mask of density 0.1 by random-erk, on noise" in done.err
    written = json.loads(Path("out/b.json").read_text())
    (found,) = written["masks"]
    assert found["kept"] == 47_158 and list(found["contestants"]) == ["ours", "ours16", "a"]


def test_bench_reads_masks_and_prints_json(cli):
    assert cli("prune", "--method", "random", "--density", "0.05", "--out", "m.safetensors").status == 0
    found = cli("bench", "--mask", "m.safetensors", *BENCH[5:], "--baselines", "", "--plot", "r.png", "--json").json
    assert (found["setting"]["model"], found["setting"]["data"]) == ("vgg-mini", "digits")  # as the mask says
    assert [(m["name"], m["method"]) for m in found["masks"]] == [("m", "random")]
    assert Path("r.png").exists()
    Path("run").mkdir()
    Path("m.safetensors").rename("run/mask.safetensors")
    again = cli("bench", "--mask", "run", *BENCH[5:], "--baselines", "", "--json").json
    assert [m["name"] for m in again["masks"]] == ["run"]


def test_mistakes_are_refused_before_anything_is_measured(cli):
    Path("a-file").touch()
    Path("a-folder").mkdir()
    for arguments, told in (
        (["--baselines", "a,z"], "unknown baseline 'z'"),
        (["--mask", "m.safetensors", "--density", "0.1"], "not both"),
        (["--method", "forse"], "did you mean"),
        (["--model", "vgg-min"], "vgg-mini"),
        (["--mask", "none.safetensors"], "none.safetensors"),
        (["--threads", "0"], "--threads is 0; it has to be at least 1"),
        (["--batch-size", "-3"], "--batch-size is -3; it has to be at least 1"),
        (["--repeat", "0"], "--repeat is 0; it has to be at least 1"),
        (["--plot", "x.txt"], "x.txt: the name has to end in .png"),
        (["--out", "a-file/b.json"], "there is a file where a folder is needed"),
        (["--out", "a-folder"], "a-folder: is a directory"),
        (["--plot", "a-file/b.png"], "there is a file where a folder is needed"),
    ):
        done = cli("bench", *arguments)
        assert "finding a mask" not in done.err or arguments[0] == "--model"
        assert done.status == 1 and told.lower() in done.err.lower(), (arguments, done.err)
