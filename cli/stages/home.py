"""A stage in a temporary folder of DVC's, whose work would go away with the folder."""

from contextlib import suppress
from pathlib import Path


def share_runs() -> None:
    """Where `dvc exp run --temp` or `--queue` runs this stage, keep its resumable work in the main checkout.

    It is addressed by content and locked, so that experiments side by side share it as one checkout does.
    """
    from diffusion.layout import RUNS, home

    here = Path.cwd()
    main = home(here)
    if main == here:
        return
    (main / RUNS).mkdir(exist_ok=True)
    with suppress(FileExistsError):  # by another stage
        RUNS.symlink_to(main / RUNS, target_is_directory=True)
