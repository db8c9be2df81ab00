"""The comparison with torch-fidelity, as small as it can be: equal numbers, whatever either takes."""

import re

import pytest

from benchmarks import evaluation


@pytest.mark.slow
def test_the_numbers_are_those_of_torch_fidelity(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.main(small=True)
    found = re.search(r"largest relative difference: (\S+)", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 1e-6
