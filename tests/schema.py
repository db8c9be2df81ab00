"""The JSON schema of params.yaml for editors, profiles/params.schema.json.

`python -m tests.schema --write` updates it; without the option it fails if the schema is outdated.
"""

import sys

from diffusion.check.params_schema import schema_text
from tests.conftest import ROOT

SCHEMA = ROOT / "profiles/params.schema.json"


def main() -> None:
    """Compare the file with the classes, or rewrite it."""
    wanted = schema_text(plugins=False)
    if "--write" in sys.argv[1:]:
        SCHEMA.write_text(wanted, encoding="utf-8")
    elif not SCHEMA.exists() or SCHEMA.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{SCHEMA.name} is outdated: run `python -m tests.schema --write`")


if __name__ == "__main__":
    main()
