"""Upload of a folder to the Hugging Face hub as one commit; errors of the hub as one sentence."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # its HTTP library's
from huggingface_hub.utils.tqdm import disable_progress_bars

from diffusion.interop.hub_folder import is_outdated
from diffusion.system.errors import DiffctlError, TemporaryError, UsageError, reason
from diffusion.system.section import brief

MAX_MESSAGE = 300  # characters of the hub's answer
LOGIN = "set HF_TOKEN to a token with write access, or run `hf auth login`"


class Upload(NamedTuple):
    """The repository's page, its newest commit, and whether that commit is of this upload."""

    url: str
    commit: str
    is_new: bool


class HubRepository:
    """A model repository of the hub. It is created, if it is missing, before the slow work.

    UsageError for a wrong name, token or right, TemporaryError if the hub cannot be reached.
    """

    def __init__(self, name: str, *, private: bool) -> None:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs that nothing changed
        if not sys.stderr.isatty():
            disable_progress_bars()
        self.name, self.api = name, HfApi()
        with self._explained():
            token = get_token()
            if token is None or not re.fullmatch(r"[!-~]+", token):
                found = "there is no token for the hub" if token is None else "the hub's token is malformed"
                raise UsageError(f"{found}: {LOGIN}")
            self.url = str(self.api.create_repo(name, private=private or None, exist_ok=True))
            if private and not self.api.model_info(name).private:
                raise UsageError(
                    f"{name} exists and is public: make it private on the hub, or leave out --private"
                )

    def upload(self, folder: Path) -> Upload:
        """Upload the folder as one commit that also removes outdated files; none if nothing changed."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        with self._explained():
            before = self.api.model_info(self.name)
            present = [one.rfilename for one in before.siblings or ()]
            removed = [CommitOperationDelete(name) for name in present if is_outdated(name, {*files})]
            added = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
            commit = self.api.create_commit(
                self.name, [*removed, *added], commit_message="Publish by diffctl", parent_commit=before.sha
            )
        return Upload(self.url, commit.oid, commit.oid != before.sha)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the library into errors of ours."""
        try:
            yield
        except HfHubHTTPError as error:
            raise self._refusal(error) from None
        except HFValidationError as error:
            raise UsageError(f"REPO {self.name} is no name of a repository ({brief(error, str)})") from None
        except ValueError as error:
            text = brief(error, str, MAX_MESSAGE)
            if isinstance(error.__cause__, HfHubHTTPError):  # its check of README.md's metadata
                raise UsageError(f"{text}: correct --license or --dataset") from None
            found = f"the answer of the hub at {self.api.endpoint} for {self.name} is unexpected ({text})"
            raise DiffctlError(f"{found}: upgrade huggingface_hub, or check HF_ENDPOINT") from None
        except (TransportError, OSError, RuntimeError) as error:  # RuntimeError: the upload of a large file
            text = brief(error.__cause__ or error, reason, MAX_MESSAGE)
            found = f"the hub at {self.api.endpoint} cannot be reached for {self.name} ({text})"
            raise TemporaryError(f"{found}: run the same command again later") from None

    def _refusal(self, error: HfHubHTTPError) -> DiffctlError:
        """Return the error for an answer of the hub, by its status."""
        status = error.response.status_code
        answer = brief(error.server_message or error.response.reason_phrase, str, MAX_MESSAGE)
        found = f"the hub at {self.api.endpoint} refused {self.name} with {status} ({answer})"
        if status == 401:
            return UsageError(f"{found}: {LOGIN}")
        if status in (403, 404):
            return UsageError(f"{found}: give the token write access to that user or organisation")
        if status in (409, 412, 429) or status >= 500:
            return TemporaryError(f"{found}: run the same command again later")
        return DiffctlError(f"{found}: correct the name and the options")
