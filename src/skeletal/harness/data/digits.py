"""Scikit-learn's digits: real, tiny, and part of an installed package, so that a first run needs no files.

1,797 images of 8x8 by 43 people (Alpaydin and Kaynak, UCI, 1998). Values 0..16 become 0..255, rounded. The
set has no test part of its own: 360 examples are drawn once, stratified, by a seed that no run can change.
"""

import torch

from skeletal.core.extras import extra
from skeletal.harness.data.memory import Arrays, Part
from skeletal.harness.data.specs import Spec

_TEST = 360


def read(spec: Spec) -> Arrays:
    """Return 1,437 training and 360 test images, the same in every run."""
    with extra("run"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    pixels, numbers = map(torch.from_numpy, load_digits(return_X_y=True))
    images = (pixels * 255 / 16).round().byte().view(-1, 1, spec.image_size, spec.image_size)
    labels = numbers.long()
    train, test = train_test_split(range(len(labels)), test_size=_TEST, stratify=labels, random_state=0)
    classes = tuple(map(str, range(spec.num_classes)))
    return Arrays(Part(images[train], labels[train]), Part(images[test], labels[test]), classes)
