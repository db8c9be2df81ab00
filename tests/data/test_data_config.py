"""The section `data`: a class per data set, valid and invalid options."""

import copy
import pickle

import pytest
from pydantic import ValidationError

from diffusion.data.data_config import SOURCES, DataConfig
from diffusion.system.registry import load_reference


def test_section_class_depends_on_name():
    for made in (DataConfig(name="digits"), DataConfig.model_validate({"name": "digits"})):
        assert type(made) is load_reference(SOURCES["digits"].config)
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made.model_copy() == made
    assert type(DataConfig(name="cifar10")) is DataConfig
    with pytest.raises(ValidationError, match="allowed are digits"):
        DataConfig(name="mnist")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "imagenet"}, "image_size: imagenet has images of many sizes"),
        ({"name": "image-folder", "path": "x"}, "image_size: image-folder has images of many sizes"),
        ({"name": "image-folder", "image_size": 8}, "path: image-folder needs the folder"),
        ({"name": "digits", "path": "x"}, "path: digits come with scikit-learn"),
        ({"name": "cifar10", "labels": "fine"}, r"labels\n  .* it belongs to cifar100 and image-folder"),
        (
            {"name": "image-folder", "path": "x", "image_size": 8, "labels": "names.txt"},
            "labels: folders, none",
        ),
        ({"name": "cifar10", "test_fraction": 0.1}, r"test_fraction\n  .* it belongs to image-folder"),
        ({"name": "image-folder", "path": "x", "image_size": 8, "test_fraction": 1.0}, "test_fraction"),
        ({"name": "hf", "image_size": 8}, "path"),
        ({"name": "hf", "path": "a"}, "image_size"),
        ({"name": "hf", "path": "a/b", "image_size": 8, "revision": ""}, "revision"),
    ],
)
def test_invalid_combinations_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values)
