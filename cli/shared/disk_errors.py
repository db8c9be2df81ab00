"""What a file system's error comes to, for a person."""

import errno
import os

from diffusion.system.errors import is_disk_full, printable, reason

ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
HANDLES = (errno.EMFILE, errno.ENFILE)


def sentence_of(error: OSError) -> str | None:
    """What is wrong, with which file, and what to do; None for a mistake in the program."""
    if isinstance(error, ValueError):  # io.UnsupportedOperation: no file's fault
        return None
    if error.errno is None:
        return reason(error)
    which = "a file" if error.filename is None else printable(os.fsdecode(error.filename))
    if is_disk_full(error):
        return f"{which} cannot be written ({error.strerror}): make room"
    if error.errno in ACCESS:
        return f"{which} cannot be used ({error.strerror}): give access, or name another place"
    if error.errno in HANDLES:
        return f"{which} cannot be opened ({error.strerror}): allow more with `ulimit -n`"
    return f"{which} cannot be used ({error.strerror}): see to it, or name another place"
