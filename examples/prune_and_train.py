"""What `skeletal run` does, from Python: prune at initialization, train the skeleton, test it, keep a run folder."""

import sys
import tempfile
from pathlib import Path

import torch

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment

torch.set_num_threads(1)  # 8x8 images are too small for more
root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

setup = Setup(model="vgg-mini", data="digits", seed=0)
pruning = resolve(Pruning(method="force", density=0.02, steps=20), "quick")
training = resolve(Training(epochs=5, batch_size=64, engine="dense"), "quick")
folder, result = experiment.run(setup, pruning, training, root=root, progress=False)

print(f"kept {result['kept']:,} of {result['prunable']:,} weights, density {result['density']:.4f}")
print(f"test accuracy {result['test']['top1']:.1f}% after {result['epochs']} epochs, {result['seconds']:.1f} s")
print("run folder:", *sorted(file.name for file in folder.path.iterdir()))
