"""What merely watches a training must not end it: the one guard around every observer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion.system.errors import DiffctlWarning, reason
from diffusion.train.distributed.process_group import RankFailed


@contextmanager
def observer_guard(what: str) -> Iterator[None]:
    """Tell what fails in the block as missing, by a DiffctlWarning, and go on; a stop is passed on.

    `what` is what there will be none of, as in "preview of step 5".
    """
    try:
        yield
    except RankFailed:
        raise
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or reason(error)
        warnings.warn(f"no {what} ({why}): the training goes on without", DiffctlWarning, stacklevel=3)
