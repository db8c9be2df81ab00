"""The pipeline's own cost: `python -m benchmarks.pipeline`. It runs the demo in a clone, some minutes long.

| what | promise on 2 CPU cores |
| --- | --- |
| demo overhead: wall time less the train, sample and feature loops | under 90 s |
| `diffctl --help` | under 0.5 s |
| the first word of a command that takes seconds, at a terminal | under 0.5 s |
| a `dvc repro` with nothing to do | under 5 s |
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
RUNS = 5
SPEAKING = (
    "history",
    "runs",
    "compare metrics/scores.json metrics/scores.json --per-seed",
    "check",
    "show steps",
    "stage data",
    "sample --out a.png",
)


def timed(folder: Path, *command: str) -> tuple[float, str]:
    """Wall seconds of a command that must succeed, and what it wrote."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return seconds, done.stdout


def median(folder: Path, *command: str) -> float:
    """Median wall seconds of several runs."""
    return statistics.median(timed(folder, *command)[0] for _ in range(RUNS))


def first_word(folder: Path, *command: str) -> float:
    """Return the median seconds until a command's first output at a terminal; then kill it."""
    return statistics.median(_first_word(folder, command) for _ in range(RUNS))


def _first_word(folder: Path, command: tuple[str, ...]) -> float:
    ours, theirs = os.openpty()
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as speaking:
        os.close(theirs)
        os.read(ours, 1)
        seconds = time.perf_counter() - began
        speaking.kill()
    os.close(ours)
    return seconds


def loop_seconds(output: str) -> dict[str, float]:
    """Seconds inside each loop, by its label, from the progress lines' last word."""
    return {
        label: float(seconds) for label, seconds in re.findall(r"(\S+) \S+/\S+ .*took ([\d.]+) s", output)
    }


def overhead(folder: Path) -> dict[str, float]:
    """The demo's wall time and what no loop explains: scoring beyond the features counts too."""
    wall, output = timed(folder, "diffctl", "run")
    loops = loop_seconds(output)
    reference = re.search(r"reference ([\d,]+)/.*took", output)
    scored = re.search(r"evaluate ([\d,]+)/.*took", output)
    assert reference
    assert scored
    images = [int(match[1].replace(",", "")) for match in (reference, scored)]
    features = loops["reference"] * (1 + images[1] / images[0])
    cells = sum(seconds for label, seconds in loops.items() if label.startswith("steps"))
    rest = wall - loops["train"] - cells - features
    return {"wall": wall, "train": loops["train"], "sample": cells, "features": features, "overhead": rest}


def main() -> None:
    """Clone, run, print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "diffctl"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        rows = {f"demo {what}": seconds for what, seconds in overhead(folder).items()}
        rows["no-op dvc repro"] = median(folder, "dvc", "repro", "--quiet")
        rows["diffctl --help"] = median(folder, "diffctl", "--help")
        for line in SPEAKING:
            words = [str(BIN / "diffctl"), *line.split()]
            rows[f"first word of {line.partition(' --')[0]}"] = first_word(folder, *words)
    for what, seconds in rows.items():
        print(f"{what:<40} {seconds:8.2f} s")


if __name__ == "__main__":
    main()
