"""A TCP proxy for a local server, which forwards everything until a fault mode is set."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.helpers.mlflow_server import free_port

Mode = Literal["pass", "refuse", "hang", "reset", "slow"]
BLOCK = 4096  # bytes forwarded at once
DELAY = 0.02  # seconds before each block in slow mode
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close that is a reset


class Proxy:
    """Listen at `port` of 127.0.0.1; each mode applies to existing and new connections.

    `refuse` closes all and stops listening, `hang` accepts connections silently, `reset` ends each by a
    reset, `slow` lets 200 kB a second through.
    """

    def __init__(self, target: int) -> None:
        self.port, self._target, self._mode = free_port(), target, "pass"
        self._loop = asyncio.new_event_loop()
        self._open, self._lines = asyncio.Event(), set[asyncio.StreamWriter]()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.become("pass")

    def become(self, mode: Mode) -> None:
        """Switch to that mode."""
        asyncio.run_coroutine_threadsafe(self._become(mode), self._loop).result(30)

    def stop(self) -> None:
        """End, with all connections."""
        self.become("refuse")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _become(self, mode: Mode) -> None:
        self._mode = mode
        self._open.clear() if mode == "hang" else self._open.set()
        if mode == "refuse":
            if self._server is not None:
                self._server.close()
            self._server = None
        elif self._server is None:
            self._server = await asyncio.start_server(self._meet, "127.0.0.1", self.port)
        if mode in ("refuse", "reset"):
            for line in list(self._lines):
                _reset(line)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "reset":
            return _reset(writer)
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        self._lines |= {writer, there}
        try:
            await asyncio.gather(self._pass_on(reader, there), self._pass_on(there_reader, writer))
        finally:
            self._lines -= {writer, there}
        return None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK):
                await self._open.wait()
                if self._mode == "slow":
                    await asyncio.sleep(DELAY)
                writer.write(block)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    line = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Run a proxy for that port during the block."""
    made = Proxy(port)
    try:
        yield made
    finally:
        made.stop()
