"""Settings of ``cachekd report``."""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.config._fields import option, required
from cachekd.config._looks import RecheckConfig
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a page is about, and how much of it is looked at.

    ``recheck`` says who the teacher of a cache is, so that it scores records again; its own
    ``samples`` and ``seed`` are not used.
    """

    paths: tuple[str, ...] = required(
        "A sealed cache, or output folders of training runs.", group="Report"
    )
    out: str | None = option(
        None,
        "HTML page to write; default: cache.html or runs.html here, with --json none.",
        group="Report",
    )
    plots_dir: str | None = option(
        None, "Folder for a PNG file of each figure of the page.", group="Report"
    )
    sample: int = option(
        1000, "Records of a cache that are read, at random; about 24 bytes a token.", group="Report"
    )
    teacher_sample: int = option(
        32, "How many of these the teacher scores again (with --teacher).", group="Report"
    )
    seed: int = option(0, "Seed of the random records.", group="Report")
    tokenizer: str | None = option(
        None, "Tokenizer folder or hub id that shows text; default: the teacher's.", group="Report"
    )
    evaluation: tuple[str, ...] = option(
        (),
        "JSON that cachekd evaluate --json printed of the students of these runs; may be repeated.",
        group="Report",
    )
    recheck: RecheckConfig | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("paths: expected a cache, or one or more run folders; found none")
        for name in ("sample", "teacher_sample"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1; found {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more; found {self.seed}")
