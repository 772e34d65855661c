"""The few calls of the Hugging Face Hub that a push needs, their errors told as a user's.

Comes in: a dataset repo. Goes out: what it holds, and commits. Only this file knows
`huggingface_hub`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cachekd.data.digests import bytes_digest
from cachekd.errors import ConfigError, StoreError

T = TypeVar("T")
_REFUSED = (401, 403)
_ANOTHER_FIRST = 412


class HubRepo:
    """A dataset repo of the hub.

    Args:
        repo: ``owner/name``.
        private: of a repo that is made.
    """

    def __init__(self, repo: str, private: bool) -> None:
        from huggingface_hub import HfApi

        self.repo, self._private, self._api = repo, private, HfApi()

    def head(self) -> str | None:
        """The last commit, or None where there is no repo."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def look() -> str | None:
            try:
                found: str = self._api.repo_info(self.repo, repo_type="dataset").sha
            except RepositoryNotFoundError:
                return None
            return found

        return self._told(look)

    def files(self, revision: str) -> dict[str, str]:
        """sha256 of each file, or where the hub keeps it in Git its blob id."""
        tree = self._told(
            lambda: list(
                self._api.list_repo_tree(
                    self.repo, repo_type="dataset", recursive=True, revision=revision
                )
            )
        )
        files = [item for item in tree if hasattr(item, "blob_id")]
        return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in files}

    def fetch(self, name: str, revision: str, folder: str) -> bytes:
        """Bytes of a file, which is left in a folder."""
        path = self._told(
            lambda: self._api.hf_hub_download(
                self.repo, name, repo_type="dataset", revision=revision, local_dir=folder
            )
        )
        return Path(path).read_bytes()

    def make(self) -> str:
        """Make the repo unless there is one; its last commit."""
        self._told(
            lambda: self._api.create_repo(
                self.repo, repo_type="dataset", private=self._private, exist_ok=True
            )
        )
        head = self.head()
        if head is None:
            raise StoreError(f"push: {self.repo} was made and yet is not there; try again")
        return head

    def commit(
        self, files: Mapping[str, bytes | Path], message: str, after: str | None = None
    ) -> None:
        """Write files, given as bytes or paths, in one commit, after another if that is given."""
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
            for name, data in sorted(files.items())
        ]
        self._told(
            lambda: self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                repo_type="dataset",
                parent_commit=after,
            )
        )

    def _told(self, call: Callable[[], T]) -> T:
        """What a call gives; its errors become those of a user."""
        from huggingface_hub import errors

        try:
            return call()
        except errors.OfflineModeIsEnabled as error:
            raise StoreError(
                "push: the hub is switched off (HF_HUB_OFFLINE), so that nothing can be pushed to "
                f"{self.repo}. Unset it, or push to a folder"
            ) from error
        except errors.LocalTokenNotFoundError as error:
            raise ConfigError(
                f"push: {self.repo}: no token of the hub is found. Log in with hf auth login, or "
                "set HF_TOKEN"
            ) from error
        except errors.HfHubHTTPError as error:
            raise StoreError(_refusal(self.repo, error)) from error
        except (errors.HTTPError, OSError) as error:
            raise StoreError(
                f"push: the hub cannot be reached ({type(error).__name__}). What was committed "
                "stays: run the same command again"
            ) from error


def holds(there: Mapping[str, str], name: str, data: bytes) -> bool:
    """Whether a repo has a file with these bytes, as the ids of its files tell."""
    if name not in there:
        return False
    head = f"blob {len(data)}\0".encode()
    blob_id = hashlib.sha1(head + data, usedforsecurity=False).hexdigest()
    return there[name] in (blob_id, bytes_digest(data))


def _refusal(repo: str, error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REFUSED:
        return (
            f"push: the hub refuses {repo} ({status}). Log in with hf auth login or set HF_TOKEN, "
            "of someone who may write there"
        )
    if status == _ANOTHER_FIRST:
        return f"push: another push to {repo} was first. Run the same command again"
    return (
        f"push: the hub answered {status} for {repo}: {error}. What was committed stays: run the "
        "same command again"
    )
