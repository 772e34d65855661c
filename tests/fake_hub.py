"""A hub in a folder: the calls of `HfApi` that a push makes, with commits that are seen whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

LARGE = (".parquet", ".safetensors")  # what the hub keeps as LFS


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://hub.invalid")
    return kind("refused", response=httpx2.Response(status, request=request))


@dataclass
class FakeHub:
    """Repos by name, each a list of commits: files by path."""

    repos: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def api(self) -> FakeHub:
        return self

    def _commits(self, repo: str) -> list[dict[str, bytes]]:
        if self.errors:
            raise self.errors.pop(0)
        if repo not in self.repos:
            raise refusal(RepositoryNotFoundError, 404)
        return self.repos[repo]

    def repo_info(self, repo: str, *, repo_type: str) -> Any:
        assert repo_type == "dataset"
        return SimpleNamespace(sha=f"{len(self._commits(repo)):040x}")

    def create_repo(self, repo: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert repo_type == "dataset" and exist_ok
        self.repos.setdefault(repo, [{".gitattributes": b""}])

    def list_repo_tree(
        self, repo: str, *, repo_type: str, recursive: bool, revision: str
    ) -> Iterable[RepoFile]:
        for path, data in self._commits(repo)[int(revision, 16) - 1].items():
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            yield RepoFile(
                path=path, size=len(data), oid=oid, lfs=lfs if path.endswith(LARGE) else None
            )

    def hf_hub_download(
        self, repo: str, name: str, *, repo_type: str, revision: str, local_dir: str
    ) -> str:
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._commits(repo)[int(revision, 16) - 1][name])
        return str(path)

    def create_commit(
        self,
        repo: str,
        operations: list[CommitOperationAdd],
        *,
        commit_message: str,
        repo_type: str,
        parent_commit: str | None,
    ) -> None:
        commits = self._commits(repo)
        if parent_commit is not None and int(parent_commit, 16) != len(commits):
            raise refusal(HfHubHTTPError, 412)
        added = {one.path_in_repo: _bytes(one.path_or_fileobj) for one in operations}
        commits.append({**commits[-1], **added})
        self.messages.append(commit_message)

    def folder(self, repo: str, into: Path, commit: int = -1) -> Path:
        """The files of a commit as a folder, as a snapshot has them."""
        for name, data in self.repos[repo][commit].items():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return into


def _bytes(given: Any) -> bytes:
    """Bytes that are given as such or as a path."""
    return given if isinstance(given, bytes) else Path(given).read_bytes()
