"""Champion moves as recorded in MLflow's tags."""

import threading
from collections.abc import Callable
from typing import Any

SCORE = {"cell": "steps5-eta0", "metric": "kd_effnet_lite0_64", "value": 0.1}


def move(number: int, before: int | None, after: int, how: str) -> dict[str, Any]:
    """Return all fields of a move with that number."""
    return {
        "id": identity(number),
        "number": number,
        "at": 1_700_000_000_000,
        "who": "ann@host",
        "before": before,
        "after": after,
        "how": how,
        "reason": "better",
        "note": "it was",
        "commit": "c" * 40,
        "score": SCORE,
        "against": SCORE if before else None,
    }


def identity(number: int) -> str:
    """Return the id of a move with that number."""
    return f"{number:032x}"


PATIENCE = 60.0  # seconds for one MLflow call, far more than needed


class Killed(BaseException):
    """The process ended here."""


class PausedWork:
    """Run `work(client)` in a thread that stops before each call of the client.

    `waiting` is the name of the call that comes next, None when the work is over; `result` or `error` is then
    what came of it. `calls` are those that were made, each with its arguments and whether it succeeded.
    """

    def __init__(self, client: Any, work: Callable[[Any], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self.waiting: str | None = None
        self.calls: list[tuple[str, tuple[Any, ...], bool]] = []
        self._client, self._work = client, work
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def step(self) -> None:
        """Make the next call and continue to the one after it."""
        self._go.release()
        self._wait()

    def finish(self) -> None:
        """Make all remaining calls."""
        while self.waiting:
            self.step()

    def kill(self) -> None:
        """End the work before its next call."""
        self._killed = True
        self.step()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if not callable(real):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.waiting = name
            self._stopped.release()
            self._go.acquire()
            if self._killed:
                raise Killed
            worked = False
            try:
                value = real(*args, **kwargs)
                worked = True
            finally:
                self.calls.append((name, args, worked))
            return value

        return call

    def _run(self) -> None:
        try:
            self.result = self._work(self)
        except BaseException as error:
            self.error = error
        self.waiting = None
        self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=PATIENCE), f"{self.waiting} does not come to an end"
