"""Cut a skeleton's dead channels away and export what is left to ONNX: a smaller, ordinary dense network."""

import tempfile
from pathlib import Path

import onnxruntime
import torch

import skeletal

torch.manual_seed(0)
torch.set_num_threads(1)
model = skeletal.models.create("resnet20-cifar", num_classes=10)
images = torch.randn(4, 3, 32, 32)
batches = [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))]
mask = skeletal.prune(model, batches, density=0.02, steps=10)
mask.attach(model).detach()

small = skeletal.compact(model, mask, images)
before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
print(f"parameters: {before:,}, compact {after:,}")

path = Path(tempfile.mkdtemp()) / "compact.onnx"
batch = torch.export.Dim("batch", max=1024)
small.model.eval()
torch.onnx.export(small.model, (images,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
other = torch.randn(7, 3, 32, 32)  # another batch size
(found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
with torch.no_grad():
    wanted = model.eval()(other)
print(f"largest difference from the masked model: {(torch.from_numpy(found) - wanted).abs().max():.1e}")
assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)
