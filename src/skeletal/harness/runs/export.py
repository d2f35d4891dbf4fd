"""A trained skeleton as a file for other runtimes: compact, dense, with the same outputs."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.compaction.compact import compact
from skeletal.core.extras import extra
from skeletal.core.files import require_writable, write_atomically
from skeletal.core.progress import stage
from skeletal.harness.runs.load import load_run

TOLERANCE = 1e-3
"""of the largest output, that the file's outputs may differ by"""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it was seen to work."""

    file: Path
    size: int
    """bytes"""
    before: int
    """parameters of the network"""
    after: int
    """parameters of the file"""
    difference: float
    """the largest between outputs of the file and of the masked network, on noise"""
    shape: tuple[int, int, int]
    """of an input image: channels, height, width"""


def export(path: Path, form: str, out: Path | None = None, *, data_dir: Path | None = None) -> Exported:
    """Write a run's trained network without its dead channels, run the file, and compare.

    Args:
        path: a finished run's folder.
        form: "onnx"; or "torch", a program that `torch.export.load` reads without this package or the network's code.
        out: the file; by default `compact.onnx` or `compact.pt2` in the folder.
        data_dir: see `load_run`.

    Raises:
        ValueError: the file's outputs are not the network's, so no file is left; and what `load_run` raises.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.

    """
    write, run_file, name = _FORMS[form]
    with extra("onnx"):
        if form == "onnx":
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    file = out or path / name
    require_writable(file)
    run = load_run(path, data_dir)
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.randn(count, *run.shape, generator=generator) for count in (4, 3))
    network = run.network
    if run.mask is not None:
        with stage("removing dead channels"):
            network = compact(run.network, run.mask, images).model.eval()
    with stage(f"exporting to {form}"):
        content = write(network, images)
    with stage(f"running {file.name}"), torch.no_grad():
        wanted, found = run.network(others), run_file(content, others)
    difference = float((wanted - found).abs().max())
    if not difference <= TOLERANCE * float(wanted.abs().max().clamp(min=1)):
        raise ValueError(f"what was exported computes other outputs than {path}, by up to {difference:.3g}")
    write_atomically(file, content)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (run.network, network))
    return Exported(file, len(content), before, after, difference, run.shape)


def _free_batch() -> Any:
    return ({0: torch.export.Dim("batch", max=65536)},)


def _write_torch(network: nn.Module, images: Tensor) -> bytes:
    content = BytesIO()
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=_free_batch()), content)
    return content.getvalue()


def _run_torch(content: bytes, images: Tensor) -> Tensor:
    return torch.export.load(BytesIO(content)).module()(images)


def _write_onnx(network: nn.Module, images: Tensor) -> bytes:
    program = torch.onnx.export(
        network, (images,), input_names=["images"], output_names=["logits"],
        dynamo=True, dynamic_shapes=_free_batch(), verbose=False,
    )  # fmt: skip
    assert program is not None, "dynamo gives one"
    return program.model_proto.SerializeToString()


def _run_onnx(content: bytes, images: Tensor) -> Tensor:
    with extra("onnx"):
        from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(logits)


_FORMS = {"onnx": (_write_onnx, _run_onnx, "compact.onnx"), "torch": (_write_torch, _run_torch, "compact.pt2")}
