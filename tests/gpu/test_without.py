"""Without a GPU the command says so, in a sentence, and ends well."""

import pytest
import torch

from tests.gpu.__main__ import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == "There is no GPU here, so nothing was tested.\n"
