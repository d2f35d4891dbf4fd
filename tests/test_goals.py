"""`benchmarks/goals.py`: which goals apply to a result of `skeletal bench`, and whether they are met."""

import json
import sys

from benchmarks import goals as script
from benchmarks.goals import goals, in_words


def record(density=0.01, **contestants):
    return {"density": density, "contestants": contestants}


def line(train, infer=1.0, state=100):
    return {"train_ms": [train, train, 50 * train], "infer_ms": [infer], "state": {"weights": state}}


def test_goals_that_apply_are_met_or_missed():
    found = goals("vgg19-cifar", record(0.0100001, ours=line(10, state=3), a=line(60, 4), b=line(29), c=line(1)))
    assert [(goal["what"], goal["against"], goal["met"]) for goal in found] == [
        ("train_ms", "a", True), ("train_ms", "b", False), ("infer_ms", "a", False), ("state", "a", True),
    ]  # fmt: skip
    assert found[0]["found"] == 6 and found[1]["goal"] == 3 and found[3]["found"] == 0.03
    assert [goal["what"] for goal in goals("lenet5", record(ours=line(1), a=line(1)))] == ["state"]
    assert goals("vgg19-cifar", record(0.05, ours=line(1), d=line(1))) == []
    found = goals("vgg19-cifar", record(0.01, ours=line(10), ours16=line(5), b=line(29)))
    assert found[0]["found"] == 5.8, "the faster of ours"


def test_goals_in_words(tmp_path, monkeypatch, capsys):
    measured = record(0.01, ours=line(10, state=3), a=line(60), b=line(29)) | {"name": "mine"}
    (tmp_path / "bench.json").write_text(json.dumps({"setting": {"model": "vgg19-cifar"}, "masks": [measured]}))
    monkeypatch.setattr(sys, "argv", ["goals.py", str(tmp_path / "bench.json")])
    script.main()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "vgg19-cifar, mine, density 0.01"
    assert shown[1].strip() == "training time: a takes 6.0 times as long, goal 5: met"
    assert shown[2].strip() == "training time: b takes 2.9 times as long, goal 3: missed"
    assert shown[-1].strip() == "weights, gradients and momentum: 3.00% of a's, goal at most 4.00%: met"
    assert [text.strip() for text in shown[1:]] == [in_words(goal) for goal in goals("vgg19-cifar", measured)]
