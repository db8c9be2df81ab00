"""The GPU benchmark: its stored results, its goals, and all parts on a CPU."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.contenders import CPU
from benchmarks.gpu import SMALL, WHOLE
from diffusion.train.step_memory import OutOfMemory

RESULT = {"rate": 10.0, "memory": 2e9, "flop": 4}


@pytest.fixture
def made(monkeypatch):
    """Three parts, and the names of those that were measured."""
    seen: list[str] = []

    def part(name, values):
        return name, lambda: seen.append(name) or values

    three = [part(gpu.RATE, {"flop_per_s": 100.0}), part("a | b | ours", RESULT), part("a | b | c", RESULT)]
    monkeypatch.setattr(gpu, "parts", lambda *_: dict(three))
    return seen


def test_results_are_stored_and_not_measured_again(made, tmp_path, capsys):
    file = tmp_path / "kept.json"
    assert not gpu.measure(file, SMALL, CPU, minutes=0.0)
    assert "3 of 3 parts are missing" in capsys.readouterr().out
    file.write_text(json.dumps({gpu.machine(SMALL, CPU): {"a | b | ours": RESULT}}))
    assert gpu.measure(file, SMALL, CPU, minutes=1.0)
    assert made == [gpu.RATE, "a | b | c"]
    assert gpu.measure(file, SMALL, CPU, minutes=0.0)
    assert len(made) == 2
    assert "| a | b | c | 10 | 40.0% | 2.0 GB |" in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory("?")])
def test_lack_of_memory_is_a_result_and_other_errors_are_raised(error, monkeypatch):
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # which loads the compiler

    def fail(error):
        raise error

    found = gpu.measured(lambda: fail(error), 4, CPU)
    assert "| a | b | c | the memory does not suffice | | |" in gpu.table({"a | b | c": found})
    with pytest.raises(RuntimeError, match="a mistake"):
        gpu.measured(lambda: fail(RuntimeError("a mistake")), 4, CPU)


@pytest.mark.long
def test_all_parts_run_at_small_size(tmp_path, capsys):
    gpu.main([str(tmp_path / "kept.json"), "--small"])
    output = capsys.readouterr().out
    assert "are missing" not in output
    assert "does not suffice" not in output
    assert f"{gpu.QUALITY}: " in output


def test_goals_are_printed_for_measured_parts(tmp_path, capsys, monkeypatch):
    """At their bounds: reached there, and missed by a hundredth."""
    ours, theirs = (gpu.TRAINING.format(gpu.ADM, by) for by in ("ours", "diffusers"))
    calm, noisy = (gpu.SAMPLING.format("cifar10", eta, "ours") for eta in gpu.ETAS)
    found = {
        gpu.RATE: {"flop_per_s": 100.0},
        ours: {**RESULT, "rate": 10.0, "flop": 4},
        theirs: {**RESULT, "rate": 10 / 1.29},
        calm: {**RESULT, "rate": 100.0},
        noisy: {**RESULT, "rate": 95.0},
        gpu.QUALITY: {"distance": 202.0, "how": "so"},
    }
    reached = {what: is_reached for what, _, _, is_reached in gpu.goals(found)}
    assert list(reached.values()) == [True, False, True, False]
    assert "cifar10 sampling at η = 1, times η = 0" in reached
    file = tmp_path / "kept.json"
    file.write_text(json.dumps({gpu.machine(WHOLE, CPU): found}))
    monkeypatch.setattr(gpu, "parts", lambda *_: dict.fromkeys(found))
    assert gpu.measure(file, WHOLE, CPU, minutes=0.0)
    output = capsys.readouterr().out
    assert "times diffusers': 1.29 (goal: 1.3; MISSED)" in output
    assert "share of the bf16 rate: 0.4 (goal: 0.4; reached)" in output
