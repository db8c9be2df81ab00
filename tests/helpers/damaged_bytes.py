"""What happens to files: a bit flips, an end is lost, bytes are put in, taken out or written over."""

from collections.abc import Callable

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A change of a file's bytes at any place; of an empty one nothing but an addition."""
    kind = draw(st.sampled_from(["flip", "truncate", "cut out", "put in", "write over"]))
    where, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    some = draw(st.binary(min_size=1, max_size=24))

    def damaged(data: bytes) -> bytes:
        at = int(where * len(data))
        match kind:
            case "flip" if data:
                return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            case "truncate":
                return data[:at]
            case "cut out":
                return data[:at] + data[at + len(some) :]
            case "write over":
                return data[:at] + some + data[at + len(some) :]
        return data[:at] + some + data[at:]

    return damaged
