"""Settings of what shares caches: ``push``, ``pull``, ``gc`` and ``ls``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cachekd.config._fields import check_choices, option, required
from cachekd.config._inputs import RowsConfig
from cachekd.config._locations import LocationConfig, bytes_of
from cachekd.errors import ConfigError

_HUB = "hf://"


@dataclass(frozen=True, kw_only=True)
class TransferConfig(LocationConfig):
    """How files travel."""

    cache: str = required("Cache folder or URL.", group="Transfer")
    location: str = required("Folder or URL that caches are shared at.", group="Transfer")
    jobs: int = option(8, "Files that travel at once.", group="Transfer")
    dry_run: bool = option(False, "Tell what would travel, and stop.", group="Transfer")

    def _check_transfer(self) -> None:
        check_choices(self)
        if self.jobs < 1:
            raise ConfigError(f"jobs: expected at least 1; found {self.jobs}")


@dataclass(frozen=True, kw_only=True)
class PushConfig(TransferConfig):
    """Settings of ``cachekd push``."""

    keys_only: bool = option(
        False,
        "Leave the token ids of the training text out: whoever takes the cache joins data of "
        "their own (train --data). Targets still tell much of a text.",
        group="Push",
    )
    drop_keys: str | None = option(
        None, "File of sample keys (hex, one a line) whose records do not travel.", group="Push"
    )
    staging: str | None = option(
        None,
        "Folder where a changed copy is made before it travels; default: a temporary one.",
        group="Push",
    )
    license: str | None = option(
        None, "Licence of the targets, for the card of a hub repo: apache-2.0.", group="Push"
    )
    private: bool = option(True, "Make a new hub repo private.", group="Push")

    def __post_init__(self) -> None:
        self._check_transfer()

    @property
    def changes(self) -> bool:
        """Whether a changed copy travels."""
        return self.keys_only or self.drop_keys is not None

    @property
    def repo(self) -> str | None:
        """The dataset repo of the hub that is pushed to, or None.

        Raises:
            ConfigError: the URL names none.
        """
        if not self.location.startswith(_HUB):
            return None
        found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", self.location)
        if not found:
            raise ConfigError(
                f"location: expected hf://datasets/OWNER/NAME; found {self.location!r}"
            )
        return found[1]


@dataclass(frozen=True, kw_only=True)
class PullConfig(TransferConfig):
    """Settings of ``cachekd pull``."""

    keys_from: tuple[str, ...] = option(
        (),
        "Data file or datasets name: only shards that hold records of its rows come; may be "
        "repeated.",
        group="Part",
    )
    split: str = option("train", "Split, for a datasets name.", group="Part")
    dataset_config: str | None = option(None, "Configuration, for a datasets name.", group="Part")
    columns: Mapping[str, str] = option(
        {}, "Maps a column that cachekd knows to one of the data: output=answer.", group="Part"
    )
    max_samples: int | None = option(None, "Read only the first rows.", group="Part")
    on_long: str = option(
        "fail",
        "How rows longer than the cache's longest sample were cut at its capture; fail: not.",
        choices=("fail", "truncate", "split", "skip"),
        group="Part",
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer folder or hub id for --keys-from; default: the teacher's.",
        group="Part",
    )
    domain: tuple[str, ...] = option(
        (), "Only shards that hold samples of this domain come; may be repeated.", group="Part"
    )
    fraction: float = option(1.0, "Share of the shards that comes, drawn at random.", group="Part")
    seed: int = option(0, "Seed of the draw.", group="Part")

    def __post_init__(self) -> None:
        self._check_transfer()
        if not 0.0 < self.fraction <= 1.0:
            raise ConfigError(f"fraction: expected 0 < fraction <= 1; found {self.fraction}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more; found {self.seed}")

    @property
    def rows(self) -> RowsConfig:
        """The rows of ``keys_from``."""
        return RowsConfig(
            data=self.keys_from,
            split=self.split,
            dataset_config=self.dataset_config,
            columns=self.columns,
            max_samples=self.max_samples,
        )


@dataclass(frozen=True, kw_only=True)
class GcConfig(LocationConfig):
    """Settings of ``cachekd gc``."""

    cache: str = required("Cache folder or URL.", group="Collect")
    older_than: float = option(
        24.0,
        "Hours for which a file that nothing names is left, and what an older seal named after a "
        "newer one came: writers and readers may be at work with it.",
        group="Collect",
    )
    compact: bool = option(
        False, "Unite small shards; of two records of one key one stays.", group="Collect"
    )
    target_size: str = option("256MB", "Size that shards are united to.", group="Collect")
    yes: bool = option(False, "Do it; else it is only told what would be done.", group="Collect")

    def __post_init__(self) -> None:
        if self.older_than < 0:
            raise ConfigError(f"older_than: expected 0 or more; found {self.older_than}")
        bytes_of(self.target_size, "target_size")


@dataclass(frozen=True, kw_only=True)
class LsConfig(LocationConfig, RowsConfig):
    """Settings of ``cachekd ls``."""

    location: str = required("Folder or URL that caches lie below.", group="List")
    teacher: str | None = option(
        None, "Only caches of this teacher: a folder, a hub id or a source id.", group="List"
    )
    tokenizer: str | None = option(
        None, "Tokenizer folder or hub id for --data; default: the teacher's.", group="List"
    )
