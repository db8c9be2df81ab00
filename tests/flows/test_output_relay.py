"""The relay of a stage's output under DVC."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flows.output_relay import OutputRelay

OUTPUT = (
    "Running stage 'train':\n"
    "> diffctl stage train\n"
    "train: 60 steps, η = 0\n"
    "\n"
    "WARNING: something of the library's\n"
    "Updating lock file 'dvc.lock'\n"
    "\n"
    "To track the changes with git, run:\n"
    "\n"
    "\tgit add dvc.lock\n"
    "\n"
    "To enable auto staging, run:\n"
    "\n"
    "\tdvc config core.autostage true\n"
    "Use `dvc push` to send your updates to remote storage.\n"
)
SHOWN = "==> train\ntrain: 60 steps, η = 0\n\nWARNING: something of the library's\n"


def relayed(*chunks: bytes) -> tuple[list[str], list[str]]:
    written: list[str] = []
    relay = OutputRelay(written.append)
    for chunk in chunks:
        relay.feed(chunk)
    relay.feed(b"", final=True)
    return written, relay.errors


LIVE = "\r\x1b[Kdata 1/2\r\x1b[Kdata 2/2"
PROGRESS = f"Running stage 'data':\r\n> diffctl stage data\r\n{LIVE}\r\nmade\r\n"
CACHED = "Stage 'data' is cached - skipping run, checking out outputs\nData and pipelines are up to date.\n"


@given(
    st.sampled_from(
        [(OUTPUT, SHOWN), (PROGRESS, f"==> data\n{LIVE}\nmade\n"), (CACHED, "==> data: from the cache\n")]
    ),
    st.lists(st.integers(0, len(OUTPUT.encode())), max_size=8),
)
def test_output_does_not_depend_on_chunk_boundaries(texts: tuple[str, str], cuts: list[int]) -> None:
    data = texts[0].encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert "".join(relayed(*(data[start:stop] for start, stop in pairwise(places)))[0]) == texts[1]


def test_a_progress_bar_is_cleared_before_the_next_line() -> None:
    bar = "\r!\rhashing models/ema |0.00\r" + " " * 24 + "\r"
    for chatter, words in (
        ("\x1b[33mWARNING\x1b[39m: 'models/ema' is empty.\r\n", ""),
        ("Running stage 'data':\n", "==> data\n"),
    ):
        whole, _ = relayed((bar + chatter).encode())
        assert "".join(whole) == bar.strip("\r") + "\r" + words
        cut, _ = relayed(bar.encode(), chatter.encode())
        assert "".join(cut) == bar + words
    assert relayed(f"{bar}ERROR: it failed\n".encode())[1] == ["it failed"]


def test_live_progress_is_written_before_its_line_ends() -> None:
    written: list[str] = []
    relay = OutputRelay(written.append)
    relay.feed(b"\r\x1b[K10 of 20")
    assert written == ["\r\x1b[K10 of 20"]
    relay.feed(b"a plain line that is cut")
    assert len(written) == 1
    relay.feed(b" short\n")
    assert written[1:] == ["a plain line that is cut short\n"]
