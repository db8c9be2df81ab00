"""Without a GPU the command prints a sentence and exits with 0."""

import pytest
import torch

from tests.gpu.__main__ import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == "There is no GPU here, so nothing was tested.\n"
