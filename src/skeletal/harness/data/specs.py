"""What is known of each data set before it is read, as a table."""

from dataclasses import dataclass

from skeletal.harness.names import DATA_SETS


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One row: shapes, normalization, augmentation, layouts in the order they are tried, how to get it."""

    name: str
    line: str
    examples: tuple[int, int]
    """to train, which some are held out of, and to test"""
    num_classes: int
    channels: int = 3
    image_size: int = 32
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 4
    """pixels of zeros around the image, from which a random crop is taken"""
    flip: bool = True
    layouts: tuple[str, ...]
    label_column: str = "label"
    """name of the parquet column with the class"""
    get: str
    """one command or sentence: how to obtain the files"""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _download(dataset: str) -> str:
    return f"python -c 'import torchvision; torchvision.datasets.{dataset}(\"data\", download=True)'"


_ALL = (
    Spec(
        name="digits", line=DATA_SETS["digits"],
        examples=(1437, 360), num_classes=10, channels=1, image_size=8,
        # Mean and standard deviation of the 1,437 training images over 255, computed once (a test compares).
        mean=(0.3054,), std=(0.3760,),
        padding=1, flip=False,  # a mirrored digit is no digit, and four pixels are half the image
        layouts=(), get="pip install scikit-learn",
    ),
    Spec(
        name="fashion-mnist", line=DATA_SETS["fashion-mnist"],
        examples=(60_000, 10_000), num_classes=10, channels=1, image_size=28, mean=(0.2860,), std=(0.3530,),
        layouts=("idx", "parquet"),
        get="apt-get install dataset-fashion-mnist, or " + _download("FashionMNIST"),
    ),
    Spec(
        name="cifar10", line=DATA_SETS["cifar10"],
        examples=(50_000, 10_000), num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        layouts=("cifar", "parquet"), get=_download("CIFAR10"),
    ),
    Spec(
        name="cifar100", line=DATA_SETS["cifar100"],
        examples=(50_000, 10_000), num_classes=100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
        layouts=("cifar", "parquet"), label_column="fine_label", get=_download("CIFAR100"),
    ),
    Spec(
        name="tiny-imagenet", line=DATA_SETS["tiny-imagenet"],
        examples=(100_000, 10_000), num_classes=200, image_size=64,
        mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        layouts=("tiny", "parquet"),
        get="fetch tiny-imagenet-200.zip from Stanford's course CS231n and unpack it in data/",
    ),
    Spec(
        name="imagenet", line=DATA_SETS["imagenet"],
        examples=(1_281_167, 50_000), num_classes=1000, image_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        layouts=("folder",),
        get="register at image-net.org, unpack ILSVRC 2012 as data/imagenet/{train,val}/<class>/*.JPEG",
    ),
)  # fmt: skip

SPECS: dict[str, Spec] = {spec.name: spec for spec in _ALL}
NAMES: dict[str, str] = {spec.name: spec.line for spec in _ALL}
