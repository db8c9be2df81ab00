"""What the data path reaches: `python -m benchmarks.data [batches] [preparing] [memory]`, all without a name.

`--small` only tries whether it runs. Run it with nothing else running; figures are medians of runs in turn.
The workers of a preparation import this module again, so torch is imported where it is needed.
"""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from diffusion.data.prepare import prepare
from diffusion.data.sources.image_folder import ImageFolderConfig
from diffusion.images.store import write_store

SIZE = 64
BATCH = 128
ROW_GROWTH = 100  # bytes an image that may be held: its name, label and place; its pixels are 12,288
PREPARE = """
import sys
from pathlib import Path
from diffusion.data.sources.image_folder import ImageFolderConfig
from diffusion.data.prepare import prepare

if __name__ == "__main__":
    raw, folder = map(Path, sys.argv[1:3])
    config = ImageFolderConfig(name="image-folder", path=raw, image_size=64)
    prepare(config, folder / "out", work=folder / "work")
"""


class Result(NamedTuple):
    """A figure, what it must reach, and whether it does."""

    what: str
    figure: str
    goal: str
    reached: bool


def batches(count: int = 40_000, draws: int = 400) -> Result:
    """Images a second out of the memory map, random access, page cache warm, prefetching as in training."""
    import torch

    from diffusion.system.threads import prefetch
    from diffusion.train.batch import ImageLoader

    with scratch() as folder:
        images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        loader = ImageLoader(write_store(folder / "store", images, None, {}), "cpu")

        def read() -> float:
            def draw(step: int) -> tuple[torch.Tensor]:
                source = torch.Generator().manual_seed(step)
                return (loader[torch.randint(count, (BATCH,), generator=source)],)

            start = time.perf_counter()
            for _ in prefetch((partial(draw, step) for step in range(draws)), "cpu"):
                pass
            return draws * BATCH / (time.perf_counter() - start)

        read()  # warms the page cache
        rate = statistics.median(read() for _ in range(5))
    return Result(f"batches of {SIZE}×{SIZE}×3", f"{rate:,.0f} images/s", "at least 20,000", rate >= 20_000)


def preparing(count: int = 100_000, rounds: int = 5) -> Result:
    """Preparing a folder of PNGs against Pillow alone decoding them, on the same cores."""
    with scratch() as folder:
        names = write_pngs(folder / "raw", count, distinct=5000)
        config = ImageFolderConfig(name="image-folder", path=folder / "raw", image_size=SIZE)
        gc.freeze()  # the names are the benchmark's: looking through them is no part of either

        def ours() -> float:
            with scratch() as made:  # as DVC runs a stage: without what an earlier run made
                return timed(lambda: prepare(config, made / "out", work=made / "work"))

        def pillow() -> None:
            chunks = [names[start : start + 256] for start in range(0, count, 256)]
            with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(decode_all, chunks))

        times = [(ours(), timed(pillow)) for _ in range(rounds)]
    mine, alone = (statistics.median(column) for column in zip(*times, strict=True))
    figure = f"{count / mine:,.0f} images/s, Pillow alone {count / alone:,.0f}: {alone / mine:.0%}"
    return Result(f"preparing PNGs of {SIZE}×{SIZE}", figure, "at least 90%", alone / mine >= 0.9)


def memory(few: int = 10_000, many: int = 200_000) -> Result:
    """Peak memory of preparing, all processes together, for few and for many images."""
    peaks = []
    for count in (few, many):
        with scratch() as folder:
            write_pngs(folder / "raw", count, distinct=1000)
            (folder / "program.py").write_text(PREPARE)
            arguments = [sys.executable, str(folder / "program.py"), str(folder / "raw"), str(folder)]
            peaks.append(peak_memory(arguments))
    growth = (peaks[1] - peaks[0]) / (many - few)
    of_each = (f"{peak / 1e6:,.0f} MB for {count:,}" for peak, count in zip(peaks, (few, many), strict=True))
    figure = f"{', '.join(of_each)}: {growth:.0f} bytes an image"
    reached = growth <= ROW_GROWTH and peaks[1] < 1e9
    goal = f"flat but for name, label and place: {ROW_GROWTH} bytes an image, and under 1 GB"
    return Result("peak memory of preparing", figure, goal, reached)


def decode_all(paths: list[Path]) -> int:
    """The minimal work of any reader: open, decode, return the pixels."""
    total = 0
    for path in paths:
        with Image.open(path) as image:
            total += np.asarray(image.convert("RGB")).nbytes
    return total


def write_pngs(root: Path, count: int, distinct: int) -> list[Path]:
    """`count` files in ten classes, the `distinct` ones linked again and again; smooth with some noise."""
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


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory(arguments: list[str]) -> int:
    """The most bytes that a program and its children hold in memory together; RuntimeError if it fails."""
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": os.getcwd()})
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{arguments[1]} failed")
    return peak


def held_memory(pid: int) -> int:
    """Bytes of a process and its children, pages that they share counted once (Linux's PSS)."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    except psutil.NoSuchProcess:
        return total
    return total


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    small = "--small" in sys.argv
    measures: dict[str, Callable[[], Result]] = {
        "batches": lambda: batches(2_000, 20) if small else batches(),
        "preparing": lambda: preparing(600, 1) if small else preparing(),
        "memory": lambda: memory(300, 1_200) if small else memory(),
    }
    for measure in [name for name in measures if name in sys.argv] or measures:
        result = measures[measure]()
        mark = "reached" if result.reached else "MISSED"
        print(f"{result.what}: {result.figure} (goal: {result.goal}; {mark})", flush=True)


if __name__ == "__main__":
    main()
