import pytest
from pydantic import ValidationError

from diffusion.data.config import DataConfig
from diffusion.data.sources import SOURCES


def test_every_name_has_a_source():
    names = DataConfig.model_fields["name"].annotation.__args__
    assert set(names) == SOURCES.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mnist"}, "name"),
        ({"name": "imagenet"}, "image_size: imagenet has images of many sizes"),
        ({"name": "image-folder", "path": "x"}, "image_size: image-folder has images of many sizes"),
        ({"name": "image-folder", "image_size": 8}, "path: image-folder needs the folder"),
        ({"name": "digits", "path": "x"}, "path: digits come with scikit-learn"),
        ({"name": "cifar100", "labels": "medium"}, "labels: cifar100 has fine and coarse labels"),
        ({"name": "cifar10", "labels": "fine"}, "labels: .* this is for cifar100 and image-folder"),
        (
            {"name": "image-folder", "path": "x", "image_size": 8, "labels": "names.txt"},
            "labels: folders, none",
        ),
        ({"name": "cifar10", "test_fraction": 0.1}, "test_fraction: .* this is for image-folder"),
        ({"name": "image-folder", "path": "x", "image_size": 8, "test_fraction": 1.0}, "test_fraction"),
        ({"name": "digits", "channels": 2}, "channels"),
        ({"name": "digits", "image_size": 0}, "image_size"),
        ({"name": "digits", "on_bad": "ignore"}, "on_bad"),
        ({"name": "digits", "flips": True}, "flips"),
    ],
)
def test_impossible_combinations_are_refused_by_the_fields_name(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "digits", "image_size": 16, "channels": 3, "flip": True},
        {"name": "cifar100", "labels": "coarse", "path": "raw"},
        {"name": "imagenet", "image_size": 256},
        {"name": "image-folder", "path": "x", "image_size": 8, "labels": "labels.csv", "test_fraction": 0.2},
    ],
)
def test_possible_ones_are_not(values):
    assert DataConfig(**values).name == values["name"]
