"""Whether Inception orders the speedrun's entries alike: `python -m benchmarks.spaces --weights FILE`.

The images of the entries, which `python -m benchmarks.speedrun` keeps in runs/speedrun/images/, are scored by
the contest's features and by Inception's 2,048, both to the reported half of the test split. The result is in
docs/spaces.json. With six entries it took 26 minutes, by one thread on two cores with two other programs.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks import ROOT, git, quality
from benchmarks.quality import EXTRACTOR, Judge
from benchmarks.speedrun import CONTESTS, kept_images
from diffusion.system.devices import default_device
from diffusion.system.files import write_json

INCEPTION, RESULT = "inception-v3-compat", ROOT / "docs/spaces.json"
Distances = dict[str, dict[str, float]]


def compare(distances: Distances, names: tuple[str, str]) -> dict[str, Any]:
    """Return the rank correlation of the entries in two spaces, and the pairs that they order differently."""
    first, second = ([by_space[name] for by_space in distances.values()] for name in names)
    swapped = [
        pair
        for pair in combinations(distances, 2)
        if np.prod([distances[pair[0]][name] - distances[pair[1]][name] for name in names]) < 0
    ]
    return {"spearman": round(float(spearmanr(first, second).statistic), 3), "swapped": swapped}


def means(found: dict[str, dict[str, list[float]]]) -> Distances:
    """Return the mean over the seeds of each entry in each space."""
    return {
        entry: {space: round(fmean(values), 1) for space, values in spaces.items()}
        for entry, spaces in found.items()
    }


def measure(weights: Path, sha256: str | None, count: int | None) -> Distances:
    """Return the mean distance of each entry's images in both spaces, of `count` images if it is given."""
    device = default_device()
    with tempfile.TemporaryDirectory() as temporary:
        entry = next(iter(CONTESTS[0].read().values()))
        _, test = quality.prepared(entry.config(0), Path(temporary))
        real = np.asarray(test.images[1::2])[:count]
    judges = {
        EXTRACTOR: Judge(real, device),
        INCEPTION: Judge(real, device, INCEPTION, weights, sha256),
    }
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(kept_images("*", 0).parent.glob("*.npy")):
        name = file.stem.rpartition("-")[0]
        for space, judge in judges.items():
            found[name][space].append(judge(np.load(file)[:count]))
        print(file.stem, {space: round(values[-1], 1) for space, values in found[name].items()}, flush=True)
    return means(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spaces", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--weights", type=Path, required=True, help="of Inception")
    parser.add_argument("--sha256", help="of the file; the published one without it")
    parser.add_argument("--images", type=int, help="of each set, for a try; all without it")
    arguments = parser.parse_args()
    distances = measure(arguments.weights, arguments.sha256, arguments.images)
    if len(distances) < 2:
        raise SystemExit("runs/speedrun/images has fewer than two entries: run benchmarks.speedrun first")
    result = {"commit": git("rev-parse", "--short=7", "HEAD"), "entries": distances}
    result |= compare(distances, (EXTRACTOR, INCEPTION))
    print(json.dumps({key: result[key] for key in ("spearman", "swapped")}, indent=2))
    if arguments.images is None:
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
