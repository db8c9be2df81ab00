"""Reading old data sets' pickles without running them.

A pickle is a program that may call anything, so `pickle.load` of a file from the network runs what its author
wants. This is an interpreter of the opcodes that plain containers and NumPy arrays need, and of no others: a
name in the file is never imported, only compared with the few that NumPy writes. Large arrays stay on disk:
what comes out says where they lie, so that a batch of gigabytes needs no memory.
"""

import math
import os
import re
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffusion.data.file_arrays import StoredArray
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import open_regular, read_error

IN_MEMORY = 1 << 16  # byte strings longer than this stay in the file
# Far beyond the sets that are read so: 400,000 operations (CIFAR-100), and 1.2 GB of text where Python 3
# wrote an array (of Mini-ImageNet) for Python 2.
MAX_OPERATIONS = 1_000_000
MAX_BYTES = 2 << 30  # that are read into memory, or made there; of a small file, four times its size
MAX_DIGITS = 1024  # bytes of an integer
MAX_AXES, MAX_SIZE = 8, 1 << 40  # of an array's shape
_MAX_NAME = 256
_DAMAGE = (ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError, OverflowError, struct.error)


def read_pickle(path: Path) -> Any:
    """The containers, numbers, strings and arrays of a pickle (protocols 2 to 5); arrays may be StoredArrays.

    Byte strings of Python 2 come as str. DiffctlError names the file when it is damaged, and also what it
    asks for when that is anything but data; nothing of it is run.
    """
    try:
        with open_regular(path) as file:
            return _Machine(path, file).run()
    except FileNotFoundError:
        raise DiffctlError(f"{printable(path)} is missing") from None
    except OSError as error:
        raise read_error(path, error) from None
    except _Forbidden as error:
        raise DiffctlError(
            f"{printable(path)} is not a data file: it asks for {printable(error)}, which was refused and "
            "not run; delete it and get the file again from its publisher"
        ) from None
    except MemoryError:
        raise DiffctlError(
            f"{printable(path)} asks for more memory than is free: is it the right file?"
        ) from None
    except _DAMAGE as error:
        why = printable(error)[:200]
        raise DiffctlError(
            f"{printable(path)} is damaged or not a pickle of arrays ({why}): get it again"
        ) from None


class _Forbidden(Exception):
    """The pickle needs more than data."""


@dataclass(frozen=True)
class _Name:
    """A global's name; it is never imported."""

    text: str


@dataclass(frozen=True)
class _Span:
    """A byte string that was left in the file."""

    offset: int
    length: int


class _Dtype:
    """A NumPy dtype in the making: its state brings the byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise _Forbidden(
                f"an array of {code[:_MAX_NAME] if isinstance(code, str) else type(code).__name__}"
            )
        self.value = np.dtype(code)

    def build(self, state: tuple[Any, ...]) -> None:
        if state[1] == "<" or state[1] == ">":
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A NumPy array in the making: its state brings shape, dtype and content."""

    value: Any = None


_CODE = re.compile(r"[<>|=]?[biuf][0-9]{1,2}")  # of booleans, integers and floats
_NUMPY = ("numpy.core.", "numpy._core.")
_ARRAY = {f"{core}multiarray._reconstruct" for core in _NUMPY}
_SCALAR = {f"{core}multiarray.scalar" for core in _NUMPY}
_BUFFER = {f"{core}numeric._frombuffer" for core in _NUMPY}
_BYTES = {"__builtin__.bytes", "builtins.bytes"}
_PLAIN = {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"}
_KNOWN = _PLAIN | _ARRAY | _SCALAR | _BUFFER | _BYTES


class _Machine:
    """The stack machine of one pickle."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.room = min(4 * self.size + IN_MEMORY, MAX_BYTES)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute to the end; the value on top."""
        for _ in range(MAX_OPERATIONS):
            code = self.read(1)
            if code == b".":
                return _finished(self.stack.pop())
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise _Forbidden(f"the operation {code!r}")
            operation(self)
        raise ValueError(f"it has more than {MAX_OPERATIONS:,} operations")

    def spend(self, count: int) -> None:
        """Note bytes that are taken from memory; ValueError where there were too many."""
        self.room -= count
        if self.room < 0:
            raise ValueError("it unfolds to more than data do")

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; EOFError when the file ends before."""
        if not 0 <= count <= self.size:
            raise EOFError("it ends too early")
        self.spend(count)
        content = self.file.read(count)
        if len(content) != count:
            raise EOFError("it ends too early")
        return content

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def string(self, form: str) -> bytes | _Span:
        """A byte string with its length before it; a long one stays in the file."""
        length = self.number(form)
        if length <= IN_MEMORY:
            return self.read(length)
        offset = self.file.tell()
        if length < 0 or offset + length > self.size:
            raise EOFError("it ends too early")
        self.file.seek(length, 1)
        return _Span(offset, length)

    def text(self, form: str) -> str:
        return self.read(self.number(form)).decode("utf-8", "surrogatepass")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """The topmost `count` values, off the stack; IndexError where there are fewer."""
        if len(self.stack) < count:
            raise IndexError("its stack runs empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def integer(self, form: str) -> int:
        """An integer of any sensible length, its length before it."""
        length = self.number(form)
        if length > MAX_DIGITS:
            raise ValueError(f"an integer of {length:,} bytes")
        return int.from_bytes(self.read(length), "little", signed=True)

    def name(self, module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise TypeError("a name is not text")
        text = f"{module[:_MAX_NAME]}.{attribute}"[:_MAX_NAME]
        if text not in _KNOWN:
            raise _Forbidden(text)
        self.push(_Name(text))

    def line(self) -> str:
        content = self.file.readline(_MAX_NAME)
        if not content.endswith(b"\n"):
            raise EOFError("a name does not end")
        return content[:-1].decode("utf-8")

    def call(self) -> None:
        """What a name stands for, of the few that are known."""
        name, arguments = self.take(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Forbidden("a call")
        self.push(self._construct(name.text, arguments))

    def _construct(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in _ARRAY:
            return _Array()
        if name == "numpy.dtype":
            return _Dtype(arguments[0])
        if name in _SCALAR:
            dtype, content = arguments
            return self._array((), dtype, False, content).item()
        if name in _BUFFER:
            content, dtype, shape, order = arguments
            return self._array(shape, dtype, isinstance(order, str) and order == "F", content)
        if name == "_codecs.encode" and _are_latin(arguments):
            self.spend(len(arguments[0]))
            return arguments[0].encode("latin1")
        if name == "collections.OrderedDict" and not arguments:
            return {}
        if name in _BYTES and not arguments:
            return b""
        raise _Forbidden(f"a call of {name}")

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
            raise _Forbidden("a state for something that is not an array")
        if isinstance(target, _Dtype):
            target.build(state)
        else:
            _, shape, dtype, fortran, content = state
            target.value = self._array(shape, dtype, bool(fortran), content)

    def _array(self, shape: Any, dtype: Any, fortran: bool, content: Any) -> Any:
        if not isinstance(dtype, np.dtype) or not isinstance(content, bytes | str | _Span):
            raise TypeError("an array is not made of bytes")
        if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(map(_is_size, shape)):
            raise ValueError("an array has no sensible shape")
        length = content.length if isinstance(content, _Span) else len(content)
        if length != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} has {length} bytes")
        if isinstance(content, _Span) and not fortran and shape:
            return StoredArray(self.path, content.offset, shape, dtype)
        values = np.frombuffer(self._content(content), dtype=dtype)
        return values.reshape(shape, order="F" if fortran else "C")

    def _content(self, content: bytes | str | _Span) -> bytes:
        if isinstance(content, _Span):
            back = self.file.tell()
            self.file.seek(content.offset)
            read = self.read(content.length)
            self.file.seek(back)
            return read
        if isinstance(content, bytes):
            return content
        self.spend(len(content))
        return content.encode("latin1")

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("it appends to something that is not a list")
        target.extend(map(_finished, values))

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("it sets items of something that is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = _finished(value)

    def python2_string(self, form: str) -> str | _Span:
        content = self.string(form)
        return content if isinstance(content, _Span) else content.decode("latin1")

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _finished(value: Any) -> Any:
    """The array or dtype that was built in place of its builder; anything else as it is."""
    return value.value if isinstance(value, _Array | _Dtype) else value


def _key(value: Any) -> Hashable:
    """Only plain keys: the hash of a nested tuple can take for ever, and many long integers have one hash."""
    if not isinstance(value, str | bytes | int | float | None):
        raise TypeError(f"a key is a {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > 63:
        raise TypeError("a key is a long integer")
    return value


def _is_size(value: Any) -> bool:
    """Whether it can be the size of an array's axis."""
    return type(value) is int and 0 <= value <= MAX_SIZE


def _are_latin(arguments: tuple[Any, ...]) -> bool:
    """Whether they are a text and the name of its encoding, as Python 3 writes bytes for Python 2."""
    return len(arguments) == 2 and all(isinstance(one, str) for one in arguments) and arguments[1] == "latin1"


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(form))


def _integer(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.integer(form))


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.string(form))


def _python2_string(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.python2_string(form))


def _text(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.text(form))


def _remember(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.memoize(machine.number(form))


def _recall(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.memo[machine.number(form)])


def _tuple(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(tuple(map(_finished, machine.take(count))))


# Opcode: what it does. Numbers and lengths are little-endian. FRAME only announces a length.
_OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.read(1),  # PROTO
    b"\x95": lambda machine: machine.read(8),  # FRAME
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"J": _number("<i"),
    b"G": _number(">d"),
    b"\x8a": _integer("<B"),
    b"\x8b": _integer("<i"),
    b"U": _python2_string("<B"),
    b"T": _python2_string("<i"),
    b"C": _bytes("<B"),
    b"B": _bytes("<I"),
    b"\x8e": _bytes("<Q"),
    b"\x96": _bytes("<Q"),  # a bytearray, read as bytes
    b"\x8c": _text("<B"),
    b"X": _text("<I"),
    b"\x8d": _text("<Q"),
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b")": _constant(()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": lambda machine: machine.push(tuple(map(_finished, machine.since_mark()))),
    b"]": lambda machine: machine.push([]),
    b"a": lambda machine: machine.append(machine.take(1)),
    b"e": lambda machine: machine.append(machine.since_mark()),
    b"}": lambda machine: machine.push({}),
    b"s": lambda machine: machine.set_items(machine.take(2)),
    b"u": lambda machine: machine.set_items(machine.since_mark()),
    b"q": _remember("<B"),
    b"r": _remember("<I"),
    b"\x94": lambda machine: machine.memoize(len(machine.memo)),
    b"h": _recall("<B"),
    b"j": _recall("<I"),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": lambda machine: machine.name(*machine.take(2)),
    b"R": lambda machine: machine.call(),
    b"b": lambda machine: machine.build(),
}
