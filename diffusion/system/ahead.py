"""Work that is done ahead of its use, in background threads: on a GPU with streams of their own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

NAME = "ahead"  # of the threads

Made = TypeVar("Made", bound=Iterable[Tensor | None])


def prefetch(
    draws: Iterable[Callable[[], Made]], device: torch.device | str, depth: int = 2
) -> Generator[Made, None, None]:
    """What the draws make, in order, while `depth` further ones are made by as many threads.

    On a GPU they work on a stream of their own, for which the caller's stream waits before it uses a result.
    What a draw raises is raised in its place, and ends the rest. Closing it waits for the draws at work and
    begins no other.
    """
    device = torch.device(device)
    with threads(depth, device) as pool:
        yield from made_ahead(pool, draws, device, depth)


def made_ahead(
    pool: Executor, draws: Iterable[Callable[[], Made]], device: torch.device, depth: int
) -> Generator[Made, None, None]:
    """As `prefetch`, by the threads of a pool; with a single one the draws are made one after another."""
    stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # a resident set may still be on its way

    def make(draw: Callable[[], Made]) -> tuple[Made, Any]:
        with ExitStack() as stack:
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            return draw(), stream.record_event() if stream is not None else None

    coming: deque[Future[tuple[Made, Any]]] = deque()
    try:
        for draw in draws:
            coming.append(pool.submit(make, draw))
            if len(coming) > depth:
                yield _ready(*coming.popleft().result())
        while coming:
            yield _ready(*coming.popleft().result())
    finally:
        for draw_left in coming:
            draw_left.cancel()


@contextmanager
def threads(count: int, device: torch.device) -> Iterator[Executor]:
    """Threads that work on the device: each new one would begin on the first GPU, and pin memory for that."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        pool = ThreadPoolExecutor(count, NAME, torch.cuda.set_device, (index,))
    else:
        pool = ThreadPoolExecutor(count, NAME)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(made: Made, event: Any) -> Made:
    """Let the caller's stream wait for the copies, and keep their memory until that stream has used it."""
    if event is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(event)
        for tensor in made:
            if tensor is not None:
                tensor.record_stream(stream)
    return made


@contextmanager
def one_ahead(draw: Callable[[], Tensor], count: int, device: torch.device) -> Iterator[Callable[[], Tensor]]:
    """`draw`, of whose results the first `count` are made one ahead; whatever is asked beyond, when asked."""
    if count < 2:
        yield draw
        return
    with threads(1, device) as pool, closing(drawn_ahead(pool, draw, count, device)) as coming:
        yield then(coming, draw)


def drawn_ahead(
    pool: Executor, draw: Callable[[], Tensor], count: int, device: torch.device
) -> Generator[tuple[Tensor], None, None]:
    """`count` results of `draw`, each made one ahead by the pool's single thread."""
    return made_ahead(pool, [lambda: (draw(),)] * count, device, 1)


def then(coming: Iterator[tuple[Tensor]], draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Gives what is coming, in order, and after its end what `draw` does."""

    def taken() -> Tensor:
        made = next(coming, None)
        return draw() if made is None else made[0]

    return taken
