"""What the data path reaches: `python -m benchmarks.data [batches] [preparing] [memory] [--small]`.

Without a name all are measured; figures are medians of runs in turn. The workers of a preparation import this
module again, so torch is imported where it is needed.
"""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks import environment, print_goal, run_measures, seconds_of
from diffusion.data.prepare import prepare
from diffusion.data.sources.image_folder import ImageFolderConfig
from diffusion.images.store import write_store

SIZE = 64
BATCH = 128
ROW_GROWTH = 100  # bytes an image that may be held: its name, label and path; its pixels are 12,288


def batches(small: bool) -> None:
    """Print images a second from the memory map: random access, warm page cache, prefetched."""
    import torch

    from diffusion.system.threads import prefetch
    from diffusion.train.batch import ImageLoader

    count, draws = (2_000, 20) if small else (40_000, 400)
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        loader = ImageLoader(write_store(Path(folder) / "store", images, None, {}), "cpu")

        def draw(step: int) -> tuple[torch.Tensor]:
            source = torch.Generator().manual_seed(step)
            return (loader[torch.randint(count, (BATCH,), generator=source)],)

        def read() -> None:
            for _ in prefetch((partial(draw, step) for step in range(draws)), "cpu"):
                pass

        read()  # warms the page cache
        rate = draws * BATCH / statistics.median(seconds_of(read) for _ in range(5))
    print_goal(f"batches of {SIZE}×{SIZE}×3", f"{rate:,.0f} images/s", "at least 20,000", rate >= 20_000)


def preparing(small: bool) -> None:
    """Print the rate of preparing a folder of PNGs against Pillow alone decoding them, on the same cores."""
    count, rounds = (600, 1) if small else (100_000, 5)
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw"
        paths = write_pngs(raw, count, distinct=5000)
        chunks = [paths[start : start + 256] for start in range(0, count, 256)]
        gc.freeze()  # the paths are the benchmark's: looking through them is no part of either

        def ours() -> float:
            with tempfile.TemporaryDirectory() as folder:  # without what an earlier run made
                return seconds_of(lambda: prepare_pngs(str(raw), folder))

        def pillow() -> None:
            with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(decode_all, chunks))

        times = [(ours(), seconds_of(pillow)) for _ in range(rounds)]
    mine, alone = (statistics.median(column) for column in zip(*times, strict=True))
    figure = f"{count / mine:,.0f} images/s, Pillow alone {count / alone:,.0f}: {alone / mine:.0%}"
    print_goal(f"preparing PNGs of {SIZE}×{SIZE}", figure, "at least 90%", alone / mine >= 0.9)


def memory(small: bool) -> None:
    """Print the peak memory of preparing, all processes together, for few and for many images."""
    peaks = {}
    for count in (300, 1_200) if small else (10_000, 200_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_pngs(folder / "raw", count, distinct=1000)
            peaks[count] = peak_memory(folder)
    (few, least), (many, most) = peaks.items()
    growth = (most - least) / (many - few)
    sizes = f"{least / 1e6:,.0f} MB for {few:,}, {most / 1e6:,.0f} MB for {many:,}"
    figure = f"{sizes}: {growth:.0f} bytes an image"
    goal = f"{ROW_GROWTH} bytes an image, for name, label and path, and under 1 GB"
    print_goal("peak memory of preparing", figure, goal, growth <= ROW_GROWTH and most < 1e9)


def prepare_pngs(raw: str, folder: str) -> None:
    """Prepare a folder of images as the stage `data` does."""
    config = ImageFolderConfig(name="image-folder", path=Path(raw), image_size=SIZE)
    prepare(config, Path(folder, "out"), work=Path(folder, "work"))


def decode_all(paths: list[Path]) -> None:
    """Do the minimal work of any reader: open and decode."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB"))


def write_pngs(root: Path, count: int, distinct: int) -> list[Path]:
    """Write `count` files in ten classes: links to `distinct` images, which are smooth with some noise."""
    draw = np.random.default_rng(0)
    paths: list[Path] = []
    for number in range(count):
        path = root / f"class{number % 10}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < distinct:
            coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + draw.integers(-12, 13, smooth.shape, dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
        else:
            os.link(paths[number % distinct], path)
        paths.append(path)
    return paths


def peak_memory(folder: Path) -> int:
    """Return the most bytes that a preparation of the folder `raw` in it holds, with its workers."""
    code = "import sys; from benchmarks.data import prepare_pngs; prepare_pngs(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder / "raw"), str(folder)]
    process = subprocess.Popen(command, env=environment())
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit("the preparation failed")
    return peak


def held_memory(pid: int) -> int:
    """Return the bytes of a process and its children; pages that they share count once (Linux's PSS)."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True)))
    return 0


def main() -> None:
    run_measures({"batches": batches, "preparing": preparing, "memory": memory})


if __name__ == "__main__":
    main()
