"""The recording of a terminal: the lines on the screen with their times, as valid XML."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.recording import LONGEST, STATES, Output, record, screen, shortened, svg


def read(*texts: str) -> list[str]:
    """Return the lines on the screen after these texts, written one second apart."""
    return [line.text for line in screen([Output(at, text) for at, text in enumerate(texts)])]


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        (["one\r\ntwo\r\n"], ["one", "two"]),
        (["one", " more\r\n"], ["one more"]),
        (["\r\x1b[K1/3", "\r\x1b[K2/3", "\r\x1b[K3/3\n", "end\n"], ["3/3", "end"]),
        (["bar |\r          \r", "said\n"], ["said"]),  # an erased progress bar
        (["outer\n\rinner\x1b[A\r          \r", "said\n"], ["said", "inner"]),  # a nested progress bar
        (["\x1b[1mbold\x1b[0m\n\x1b[31mred\x1b[0m\n"], ["bold", "red"]),
        (["\n\nlow\n\n"], ["", "", "low"]),
        ([""], [""]),
    ],
)
def test_screen_matches_a_terminal(written: list[str], seen: list[str]) -> None:
    assert read(*written) == seen


def test_line_with_many_updates_keeps_its_first_and_last_state() -> None:
    (line,) = screen([Output(at, f"\r\x1b[K{at}/100") for at in range(101)])
    states = [text for _, text in line.states]
    assert len(states) == STATES
    assert (states[0], states[-1]) == ("0/100", "100/100")


def test_picture_keeps_the_order_and_shortens_waits() -> None:
    lines = screen([Output(0, "a\n"), Output(0.2, "b\n"), Output(3600, "c\n")])
    clock = shortened(lines)
    assert clock[0] == 0
    assert clock[0.2] == pytest.approx(0.2)
    assert clock[3600] == pytest.approx(0.2 + LONGEST)


def test_picture_is_xml_with_the_last_screen_as_final_lines() -> None:
    drawn = ElementTree.fromstring(svg("see <this>", [Output(0, "\r1 & 2"), Output(1, "\r3 > 2\nend\n")], 40))
    texts = [element for element in drawn.iter() if element.tag.endswith("text")]
    last = [element.text for element in texts if "passing" not in element.attrib["class"]]
    assert last == ["$ see <this>", "3 > 2", "end"]
    assert [element.text for element in texts if "passing" in element.attrib["class"]] == ["1 & 2"]


def test_command_runs_in_its_own_terminal(tmp_path) -> None:
    recorded = record(
        [sys.executable, "-c", "import os; print(os.isatty(2), *os.get_terminal_size())"], tmp_path
    )
    assert screen(recorded)[-1].text == "True 100 40"


def test_failed_command_raises(tmp_path) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        record([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
