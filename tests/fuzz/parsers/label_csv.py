"""A CSV file with the classes of images in a folder."""

from pathlib import Path

from diffusion.data.data_config import DataConfig, build_source

NAME = "labels.csv"
IMAGES = ("0.png", "a/2.jpg")


def seeds() -> list[bytes]:
    """Return files with and without splits, quotes, byte order mark and other line ends."""
    return [
        b"file,label\n0.png,cat\na/2.jpg,dog\n",
        b"\xef\xbb\xbfFile,Class,split\r\n0.png,1,train\r\na/2.jpg,10,test\r\n",
        b'note,path,label\n"a ""b""\n",./0.png,"x, y"\nz,a\\2.jpg,\xc3\xa9\n',
    ]


def parse(path: Path) -> None:
    """Open a folder of two files with it."""
    for name in IMAGES:
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).touch()
    config = DataConfig(name="image-folder", path=path.parent, image_size=8, labels=NAME)
    raw = build_source(config).open()
    assert raw.classes
    assert all(name.isprintable() for name in raw.classes)
