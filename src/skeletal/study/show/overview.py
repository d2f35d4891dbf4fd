"""How far a study is, and what is left to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skeletal.study.dispatch.costs import Costs, said, total
from skeletal.study.paper.collect import STATES, state_of
from skeletal.study.paper.item import Item
from skeletal.study.paper.scales import Scale


def overview(items: Sequence[Item], scale: Scale, root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """Return a line for each item: what it shows, its runs by state, seconds still to do and where they come from."""
    costs = Costs(root, device)
    lines = []
    for item in items:
        jobs = item.jobs(scale)
        states = [state_of(job.folder(root)) for job in jobs]
        each = [costs.of(job) for job, state in zip(jobs, states, strict=True) if state != "finished"]
        left = total(each)
        here = item.at(scale)
        line: dict[str, Any] = {"item": item.name, "title": here.title, "shows": here.caption, "runs": len(jobs)}
        line |= {state: states.count(state) for state in STATES}
        line |= {"seconds": round(left.seconds, 1), "source": left.source}
        line["to do"] = said(each)
        lines.append(line | {"state": _state(line, item)})
    return lines


def _state(line: dict[str, Any], item: Item) -> str:
    if not line["runs"]:
        return "needs no run" if item.name == "table3" else "not at this scale"
    if line["finished"] == line["runs"]:
        return "finished"
    if line["running"]:
        return "running"
    if line["failed"]:
        return "failed in part"
    return "begun" if line["finished"] else "not run"
