"""Every data set by its name in params.yaml."""

from diffusion.data.source import Source
from diffusion.data.sources.cifar import CIFAR10, CIFAR100
from diffusion.data.sources.digits import Digits
from diffusion.data.sources.fashion_mnist import FashionMnist
from diffusion.data.sources.image_folder import ImageFolder
from diffusion.data.sources.imagenet import ImageNet
from diffusion.data.sources.mini_imagenet import MiniImageNet
from diffusion.data.sources.small_imagenet import SmallImageNet

SOURCES: dict[str, Source] = {
    "digits": Digits(),
    "fashion-mnist": FashionMnist(),
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "imagenet": ImageNet(),
    "imagenet64": SmallImageNet(64),
    "imagenet32": SmallImageNet(32),
    "mini-imagenet": MiniImageNet(),
    "image-folder": ImageFolder(),
}
