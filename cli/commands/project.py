"""A project: made by `diffctl init`, and the documentation by `diffctl docs`."""

from pathlib import Path

import typer

from cli.shared.command import CommandOptions, argument, command, option
from cli.shared.options import profile_names
from diffusion.layout import PACKAGE_DATA
from diffusion.system.errors import UsageError

app = typer.Typer()


@command(app, "cli.actions.project.new_project:init")
class Init(CommandOptions):
    """Make a folder a project: params.yaml, pipeline, plugins, Git and DVC. No file is overwritten.

    For a folder of pictures, image size, profile and training steps are chosen for them and this machine.
    """

    folder: Path = argument("The folder of the project.", metavar="[DIR]", default=Path())
    data: Path | None = option("A folder of pictures, or a data set such as cifar10.", metavar="FOLDER|NAME")
    profile: str | None = option("The settings: a profile.", metavar="NAME", autocompletion=profile_names)
    from_clone: Path | None = option("Take over the work in a clone of diffctl.", metavar="CLONE")
    ignore_edits: bool = option("With --from-clone: leave its edits of the library behind.")
    defaults: bool = option("Ask nothing: without --data and --profile, handwritten digits.")
    subdir: bool = option("Make a project in a folder inside a Git repository.")
    github_actions: bool = option("Also write a workflow that checks every push on GitHub.")
    sky: bool = option("Also write sky.yaml, for spot machines with SkyPilot.")

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.data, self.profile, self.from_clone)) > 1:
            raise UsageError("--data, --profile and --from-clone exclude each other: give one of them")
        if self.ignore_edits and self.from_clone is None:
            raise UsageError("--ignore-edits needs --from-clone: add it, or leave it out")


@command(app, "cli.actions.project.project_upgrade:upgrade", "comparing the project's files")
class Upgrade(CommandOptions):
    """Bring the files of this project to the installed version; edits of yours are merged.

    Renamed keys of params.yaml get their new names. Conflicts are marked as by `git merge`, and exit with 1.
    """

    dry_run: bool = option("List the changes and write nothing.")


def pages() -> dict[str, Path]:
    """Return the pages by topic, and the files of deploy/ by their paths."""
    topics = {path.stem: path for path in sorted((PACKAGE_DATA / "docs").glob("*.md"))}
    files = sorted(path for path in (PACKAGE_DATA / "deploy").rglob("*") if path.is_file())
    return topics | {path.relative_to(PACKAGE_DATA).as_posix(): path for path in files}


@command(app, "cli.actions.project.documentation:show_page")
class Docs(CommandOptions):
    """Print a page of the documentation, or list the pages and files."""

    topic: str | None = argument(
        "A page such as training, or a file such as deploy/nginx.conf.",
        autocompletion=lambda: list(pages()),
    )
