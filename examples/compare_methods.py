"""What each method leaves of a network, before any training: empty layers, and weights that do anything at all."""

import warnings

import torch

import skeletal
from skeletal.harness import data

torch.set_num_threads(1)
digits = data.load("digits")
model = skeletal.models.create("vgg-mini", num_classes=10, in_channels=1, image_size=8, seed=0)
batches = list(digits.train.batches(128, train=True, drop_last=True))
example = batches[0][0][:8]  # whose values do not matter

print(f"{'method':16} {'kept':>6} {'on a path':>9} {'empty layers':>12} {'multiply-adds':>13}  path to output")
for method, row in skeletal.METHODS.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", skeletal.CollapseWarning)  # the table says it
        steps = None if row.one_shot else 5
        mask = skeletal.prune(model, batches, density=0.01, method=method, steps=steps, on_collapse="keep")
    found = skeletal.diagnose(model, mask, example)
    print(
        f"{method:16} {mask.kept:6,} {found.effective:9,} {len(mask.empty_layers):12} {found.macs.forward_kept:13,}"
        f"  {'yes' if mask.metadata['connected'] else 'no'}"
    )
