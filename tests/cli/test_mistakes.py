"""What a user sees of a mistake: one message that names the thing and the remedy, and no traceback."""

import os
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest

CHOICES = {
    "an option": (["run", "--desnity", "0.1"], ["--desnity", "--density"]),
    "a command": (["rnu"], ["rnu", "run", "eval"]),
    "a method": (["prune", "--method", "forc"], ["'forc'", "force", "snip", "random"]),
    "a method to run": (["run", "--method", "forc"], ["'forc'", "force", "dense"]),
    "a network": (["run", "--model", "vgg-mni"], ["'vgg-mni'", "vgg-mini"]),
    "a data set": (["run", "--data", "cifr10"], ["'cifr10'", "cifar10"]),
    "a preset": (["run", "--preset", "cifar"], ["'cifar'", "cifar10", "quick"]),
    "a schedule": (["run", "--schedule", "expo"], ["expo", "exponential", "linear"]),
    "a split": (["eval", "runs", "--split", "tset"], ["tset", "test", "validation"]),
    "an engine": (["run", "--engine", "spars"], ["spars", "auto", "dense", "sparse"]),
    "a device": (["run", "--device", "gpu"], ["'gpu'", "cpu"]),
}
VALUES = {
    "density and sparsity": (["run", "--density", "0.1", "--sparsity", "0.9"], ["density", "sparsity", "not both"]),
    "a density above 1": (["run", "--density", "10"], ["density", "10", "at most 1"]),
    "a density that keeps nothing": (["prune", "--density", "1e-9"], ["1e-09", "471,584", "keeps one"]),
    "no number": (["run", "--density", "much"], ["--density", "much"]),
    "no value": (["run", "--density"], ["--density", "requires"]),
    "several steps of a one-shot method": (["run", "--method", "snip", "--steps", "3"], ["snip", "3", "force"]),
    "no epochs": (["run", "--method", "random", "--epochs", "0"], ["epochs", "at least 1"]),
    "a name that is a path": (["run", "--name", "a/b"], ["'a/b'", "plain folder name"]),
    "an image too small": (["run", "--model", "lenet5"], ["lenet5", "8x8", "12x12"]),
    "no mask there": (["train", "--mask", "mask.safetensors"], ["mask.safetensors"]),
    "nothing to show": (["show"], ["mask files or run folders"]),
    "show what is not there": (["show", "mask.safetensors"], ["no mask file", "mask.safetensors"]),
    "no run there": (["eval", "runs/mine"], ["runs/mine", "config.json"]),
    "no folder for the mask": (
        ["prune", "--out", "here/mask.safetensors"],
        ["here/mask.safetensors", "create it first"],
    ),
    "a config file that is not there": (["run", "--config", "my.toml"], ["my.toml"]),
    "sbatch's options without Slurm": (["run", "--slurm.partition", "gpu"], ["--slurm.* needs --executor slurm"]),
    "sbatch's options for workers of this machine": (
        ["study", "run", "fig7", "--scale", "smoke", "--slurm.partition", "gpu"],
        ["--slurm.* needs --executor slurm", "leave --slurm.partition out"],
    ),
    "sbatch's options in a plan": (
        ["study", "run", "fig7", "--scale", "smoke", "--plan", "array", "--slurm.partition", "gpu"],
        ["--plan prints no --slurm.*", "#SBATCH"],
    ),
    "waiting by those who do not": (["run", "--wait", "--executor", "local"], ["passes over", "leave --wait out"]),
    "several processes in this one": (["sanity", "--jobs", "4"], ["--jobs needs --executor local"]),
    "advice by several processes in this one": (["advise", "--jobs", "2"], ["--jobs needs --executor local"]),
    "a study by several processes in this one": (
        ["study", "run", "fig7", "--scale", "smoke", "--executor", "none", "--jobs", "8"],
        ["--jobs needs --executor local"],
    ),
    "rewinding where nothing rewinds": (
        ["run", "--method", "snip", "--rewind-epochs", "3"],
        ["snip rewinds nothing", "--rewind-epochs", "--method imp"],
    ),
    "a seed that no generator takes": (["run", "--seed", 2**63], [f"seed is {2**63}; it has to be at most 2^63-1"]),
    "the last of several seeds": (["run", "--seed", 2**63 - 2, "--seeds", 3], ["has to be at most 2^63-1"]),
    "a seed of a benchmark": (["bench", "--seed", 2**64], ["has to be at most 2^63-1"]),
    "a benchmark over a file": (["bench", "--out", "a-file"], ["a-file already exists", "--overwrite"]),
    "a network over a file": (["export", "runs/a", "--torch", "--out", "a-file"], ["a-file already exists"]),
    "a table over a file": (["study", "table", "1", "--out", "a-file"], ["a-file already exists", "--overwrite"]),
    "a repaired mask over a file": (
        ["diagnose", "a.safetensors", "--repair", 1, "--out", "a-file"],
        ["a-file already exists", "--overwrite"],
    ),
    "runs into a file": (["run", "--method", "random", "--out", "a-file"], ["a-file"]),
}


@pytest.mark.parametrize("mistake", [*CHOICES, *VALUES])
def test_a_mistake_is_one_clear_message(cli, mistake):
    Path("a-file").touch()
    arguments, parts = (CHOICES | VALUES)[mistake]
    shown = cli(*arguments)
    assert shown.status > 0 and shown.out == ""
    for part in parts:
        assert part in shown.err
    assert "Traceback" not in shown.err and "[Errno" not in shown.err and "Error:" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "status"), [(["run", "--desnity", "0.1"], 2), (["rnu"], 2), (["run", "--density", "10"], 1)]
)
def test_the_exit_status_is_2_for_what_is_not_understood_and_1_for_what_cannot_be_done(cli, arguments, status):
    assert cli(*arguments).status == status


@pytest.mark.parametrize(
    "mistake",
    ["a method to run", "a network", "a data set", "a device", "a density above 1", "an image too small", "no epochs"],
)
def test_a_mistake_leaves_no_run_folder(cli, mistake, tmp_path):
    cli(*(CHOICES | VALUES)[mistake][0])
    assert list(tmp_path.iterdir()) == []


def test_dense_is_no_method_to_prune_with(cli):
    shown = cli("prune", "--method", "dense")
    assert shown.status == 1
    assert "dense" in shown.err and "unknown" not in shown.err  # it is known, and leaves nothing to prune


def test_data_that_is_not_there(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shown = cli("run", "--data", "cifar10")
    assert shown.status == 1
    for part in ("cifar10 is not here", "data/cifar10", "home/.cache/skeletal", "download=True", "--data-dir"):
        assert part in shown.err
    assert "elsewhere/cifar10" in cli("run", "--data", "cifar10", "--data-dir", "elsewhere").err
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("damage", ["foreign", "cut", "flipped"])
def test_a_damaged_mask_file(cli, damage):
    file = Path("mask.safetensors")
    assert cli("prune", "--method", "random", "--out", file).status == 0
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    file.write_bytes({"foreign": b"not a mask", "cut": content[:-10], "flipped": content}[damage])
    for arguments in (["show", file], ["train", "--mask", file]):
        shown = cli(*arguments)
        assert shown.status == 1 and shown.out == ""
        assert "mask.safetensors" in shown.err and "damaged" in shown.err
    assert not Path("runs").exists()


def test_a_mask_of_another_network(cli):
    assert cli("prune", "--method", "random").status == 0
    shown = cli("train", "--mask", "mask.safetensors", "--model", "resnet20-cifar", "--epochs", "1")
    assert shown.status == 1
    assert "the mask was found with network vgg-mini" in shown.err
    assert "the mask has a layer 'features.0.weight' that resnet20-cifar does not have" in shown.err
    shown = cli("diagnose", "mask.safetensors", "--model", "resnet20-cifar")
    assert shown.status == 1 and "'features.0.weight' that resnet20-cifar does not have" in shown.err
    assert not Path("runs").exists()


def test_a_reader_that_has_seen_enough_is_no_mistake():
    """As in `skeletal ... | head`: no message, and the status of a program that SIGPIPE ends."""
    command = [sys.executable, "-c", "from skeletal.cli import main; main()", "run", "--print-config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writing:
        writing.stdout.close()
        assert writing.stderr.read() == b""
    assert writing.returncode == 141


def test_a_dense_run_has_no_mask_to_diagnose(cli):
    settings = ["--method", "dense", "--epochs", "1", "--batch-size", "512", "--json"]
    folder = cli("run", *settings).json["folder"]
    shown = cli("diagnose", folder)
    assert shown.status == 1 and "is a dense run: it has no mask" in shown.err
    assert "is a dense run: it has no mask" in cli("train", "--mask", folder).err
    assert "after 1 epoch, " in cli("show", folder).out


def test_a_network_with_a_slash_in_its_name_is_unknown_and_the_nearest_are_named(cli):
    shown = cli("run", "--model", "nets/resnet18")
    assert shown.status == 1 and "unknown network 'nets/resnet18'; did you mean" in shown.err
    assert "resnet18" in shown.err.partition("did you mean")[2]


OWN = """
import torch
from torch import nn

def tuples(num_classes):
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)), x
    return Two(64, num_classes)

def asks(num_classes, width):
    return nn.Linear(64, num_classes)

def other_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def half(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes).half())

def nowhere(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, device="meta"))

def scripted(num_classes):
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)))
"""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("tuples", "mine:tuples gives a tuple for an image of (1, 8, 8), not logits (1, 10)"),
        ("asks", "missing a required argument: 'width'"),
        ("other_classes", "gives (1, 7) for an image"),
        ("half", "whose 1.weight is of torch.float16"),
        ("nowhere", "whose 1.weight is on the meta device"),
        ("scripted", "this is a ScriptModule"),
    ],
)
def test_a_network_of_ones_own(cli, function, message, monkeypatch, tmp_path):
    Path("mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    shown = cli("run", "--model", f"mine:{function}", "--method", "snip", "--density", "0.5", "--epochs", "1")
    assert shown.status == 1 and message in shown.err and "Traceback" not in shown.err


def test_launched_processes_do_not_start_others(cli, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("skeletal.harness.training.processes.group", nullcontext)
    shown = cli("run", "--executor", "local")
    assert shown.status == 1 and "starts processes of its own, and this is one of 2" in shown.err


def test_a_module_that_cannot_be_imported(cli, monkeypatch, tmp_path):
    Path("broken.py").write_text("def net(:")
    monkeypatch.syspath_prepend(tmp_path)
    shown = cli("run", "--model", "broken:net")
    assert shown.status == 1 and "the module of 'broken:net' cannot be imported: SyntaxError" in shown.err


def test_a_folder_is_no_place_for_a_mask_and_nothing_is_searched_for_it(cli):
    for options in ([], ["--overwrite"]):
        shown = cli("prune", "--out", ".", *options)
        assert shown.status == 1 and ". is a folder: give --out a file, such as mask.safetensors" in shown.err
        assert "pruning" not in shown.err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nothing can be written")
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["prune", "--method", "random", "--out"], "/proc/a.safetensors"),
        (["diagnose", "a.safetensors", "--repair", 1, "--out"], "/proc/a.safetensors"),
        *(
            ([*command, "--plot"], plot)
            for command in (["advise"], ["show", "a.safetensors"], ["compare", "runs"])
            for plot in ("a.jpg", "/proc/a.png")
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(cli, command, file, monkeypatch):
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("worked for nothing, perhaps for hours")

    for module in ("experiment", "load", "measure", "review"):  # imported later, they would keep what is patched here
        import_module(f"skeletal.harness.runs.{module}")
    for work in (
        "core.masks.mask.Mask.load",
        "harness.runs.finding.load_data",
        "harness.runs.review.diagnose_mask",
        "harness.store.search.runs_below",
        "study.dispatch.launch.launch",
    ):
        monkeypatch.setattr(f"skeletal.{work}", worked)
    shown = cli(*command, file)
    assert shown.status == 1 and shown.out == "" and file in shown.err


def test_an_export_that_cannot_be_written_is_refused_before_the_work(cli, monkeypatch):
    Path("a-file").touch()
    monkeypatch.setattr("skeletal.harness.runs.export.load_run", None)
    shown = cli("export", "runs/a", "--torch", "--out", "a-file/net.pt2")
    assert shown.status == 1 and "a-file/net.pt2" in shown.err


def test_a_defect_of_ours_is_not_dressed_up_as_the_users(cli, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("skeletal.harness.runs.experiment.load_data", broken)
    with pytest.raises(ZeroDivisionError):
        cli("run")


def test_ctrl_c_while_the_command_is_still_being_imported():
    code = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "skeletal.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from skeletal.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def command(*arguments, **options):
    code = "import sys; from skeletal.cli import main; sys.argv[0] = 'skeletal'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_outputs_that_are_closed_end_no_command():
    code = "from skeletal.cli import main; main()"
    shell = f'"{sys.executable}" -c "{code}" run --print-config'
    for closed in (">&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{shell} {closed}"], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_characters_that_an_output_does_not_know_end_no_command():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = command("run", "--data-dir", "data/\u00b1", "--print-config", env=ascii_only)
    assert done.returncode == 0 and b"\\xb1" in done.stdout
