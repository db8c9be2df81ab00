"""Every data set by its name in params.yaml."""

from diffusion.data.source import Source
from diffusion.data.sources.cifar import CIFAR10, CIFAR100
from diffusion.data.sources.digits import Digits
from diffusion.data.sources.fashion_mnist import FashionMnist

SOURCES: dict[str, Source] = {
    "digits": Digits(),
    "fashion-mnist": FashionMnist(),
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
}
