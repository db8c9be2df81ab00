"""The table of verdicts in docs/evidence.md: `python -m benchmarks.evidence`.

It is made of the files docs/evidence/*.json, each the output of `diffctl verdict --json`, in the order of
their names. A verdict of an older diffctl needs `machine`, `commit` and `command` next to its other keys.
"""

import json
from typing import Any

from benchmarks import ROOT
from diffusion.system.files import write_text
from docs.site.evidence_page import missing_keys, with_evidence

PAGE, FOLDER = ROOT / "docs/evidence.md", ROOT / "docs/evidence"


def read_verdicts() -> list[dict[str, Any]]:
    """Read the stored verdicts; SystemExit for one without a key of its row."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        verdict = json.loads(file.read_text(encoding="utf-8"))
        if missing := missing_keys(verdict):
            raise SystemExit(f"{file.relative_to(ROOT)} has no {', '.join(missing)}: add it by hand")
        found.append(verdict)
    return found


if __name__ == "__main__":
    write_text(PAGE, with_evidence(PAGE.read_text(encoding="utf-8"), read_verdicts()))
