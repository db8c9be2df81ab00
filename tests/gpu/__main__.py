"""Run what is marked `gpu`: `python -m tests.gpu`, with pytest's further arguments."""

import sys


def main(arguments: list[str]) -> int:
    """pytest's exit code; 0 without a GPU, which is said."""
    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was tested.")
        return 0
    import pytest

    return int(pytest.main(["-m", "gpu", "tests", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
