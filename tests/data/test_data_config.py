"""The section `data`: a class per data set, valid and invalid options."""

import copy
import pickle

import pytest
from pydantic import ValidationError

from diffusion.data.data_config import SOURCES, DataConfig, build_source
from diffusion.system.references import load_reference


def test_every_source_accepts_its_section(tmp_path):
    for name, entry in SOURCES.items():
        config = load_reference(entry.config)
        assert issubclass(config, DataConfig)
        path = None if name == "digits" else tmp_path
        info = build_source(config(name=name, path=path, image_size=8)).info()
        assert info.classes or info.blocked


def test_section_class_depends_on_name():
    for made in (DataConfig(name="digits"), DataConfig.model_validate({"name": "digits"})):
        assert type(made) is load_reference(SOURCES["digits"].config)
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made.model_copy() == made
    assert type(DataConfig(name="cifar10")) is DataConfig
    with pytest.raises(ValidationError, match="allowed are digits"):
        DataConfig(name="mnist")


def test_own_options_belong_to_one_set():
    def own(**values):
        return DataConfig.model_validate(values).own_options()

    assert own(name="digits") == own(name="cifar10", path="x") == {}
    assert own(name="cifar100") == {"labels": "fine"}
    folder = {"name": "image-folder", "path": "x", "image_size": 8}
    assert own(**folder, test_fraction=0.5) == {"labels": None, "test_fraction": 0.5}


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
        ({"name": "digits", "flips": True}, "flips"),
        ({"name": "hf", "image_size": 8}, "path"),
        ({"name": "hf", "path": "a"}, "image_size"),
        ({"name": "hf", "path": "a/b", "image_size": 8, "revision": ""}, "revision"),
    ],
)
def test_invalid_combinations_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values)
