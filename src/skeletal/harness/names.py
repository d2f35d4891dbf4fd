"""Names of networks and data sets, with a line on each, for the command line: nothing here imports torch."""

NETWORKS = {
    "resnet50-cifar": "ResNet-50 with a 3x3 stem, as in pytorch-cifar; 23.5M parameters",
    "stable-resnet50-cifar": "the same, residual branches scaled by 1/4 (Hayou et al. 2020)",
    "resnet20-cifar": "ResNet-20 (16-32-64 channels) with 1x1 projection shortcuts; 0.27M parameters",
    "stable-resnet20-cifar": "the same, residual branches scaled by 1/3",
    "vgg19-cifar": "VGG-19 with batch norm, as in GraSP; 20.0M parameters",
    "vgg11-cifar": "VGG-11 with batch norm, built the same way; 9.2M parameters",
    "vgg-mini": "8 narrow conv layers for 8x8 to 32x32 images; 0.47M parameters",
    "lenet5": "LeNet-5 with ReLU and max pooling; 62k parameters at 28x28",
}

DATA_SETS = {
    "digits": "1,797 handwritten digits, 8x8 grey, from scikit-learn: needs no files",
    "fashion-mnist": "70,000 pieces of clothing, 28x28 grey, 10 classes",
    "cifar10": "60,000 photographs, 32x32, 10 classes",
    "cifar100": "60,000 photographs, 32x32, 100 classes",
    "tiny-imagenet": "110,000 photographs, 64x64, 200 classes of ImageNet",
    "imagenet": "1.3 million photographs, 1,000 classes (ILSVRC 2012), decoded while training",
}
