"""The `diffctl` script, and `python -m diffctl`."""

import sys
from importlib import import_module

from diffctl.installation import check_packages


def main() -> None:
    """Run the command line; exit 2 on Windows, or if a package of diffctl would come from elsewhere."""
    if sys.platform == "win32":  # no fork, and no locks of fcntl
        print("diffctl: Windows is not supported: use WSL 2 or the container", file=sys.stderr)
        sys.exit(2)
    try:
        check_packages()
    except ImportError as error:
        print(f"diffctl: {error}", file=sys.stderr)
        sys.exit(2)
    import_module("cli.entry").main()


if __name__ == "__main__":
    main()
