"""LeNet-5, for images of one size."""

from collections import OrderedDict

from torch import nn


def lenet5(*, num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    """Two 5x5 convolutions with max pooling, three linear layers, ReLU throughout.

    (N, in_channels, image_size, image_size) -> logits (N, num_classes); `image_size` is at least 12, and
    28 gives the usual 400 features. After LeCun et al. 1998, with ReLU and max pooling in place of
    tanh and subsampling.
    """
    side = (image_size // 2 - 4) // 2  # pool, 5x5 convolution without padding, pool
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_channels, 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * side * side, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )
