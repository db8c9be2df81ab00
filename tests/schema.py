"""The JSON schema of params.yaml as the profiles' editors find it, at profiles/params.schema.json.

`python -m tests.schema --write` brings it up to date; without the option it says whether it is.
"""

import sys

from diffusion.check.params_schema import schema_text
from tests.conftest import ROOT

SCHEMA = ROOT / "profiles/params.schema.json"


def main() -> None:
    """Compare the file with the classes, or rewrite it."""
    wanted = schema_text()
    if "--write" in sys.argv[1:]:
        SCHEMA.write_text(wanted, encoding="utf-8")
    elif not SCHEMA.exists() or SCHEMA.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{SCHEMA.name} is not what params.yaml may hold: run `python -m tests.schema --write`")


if __name__ == "__main__":
    main()
