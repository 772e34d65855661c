"""Settings of ``cachekd serve-teacher``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from cachekd.config._fields import check_choices, option
from cachekd.config._inputs import check_loading
from cachekd.config._live import ScoringConfig
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ScoringConfig):
    """A teacher for other processes, and whom it answers. What is kept is the client's choice."""

    host: str = option("127.0.0.1", "Address to listen at.", group="Server")
    port: int = option(8765, "Port to listen at; 0: a free one.", group="Server")
    token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "Token that clients must send; better given as CACHEKD_SERVE_TOKEN.",
            "group": "Server",
        },
    )
    insecure: bool = option(
        False, "Listen at an address that others can reach, without a token.", group="Server"
    )
    batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Server"
    )
    max_wait_ms: float = option(
        5.0, "Milliseconds that a batch which is not full waits for more.", group="Server"
    )
    max_queue: int = option(
        64, "Requests that may wait; further ones are told to come again.", group="Server"
    )
    max_body_bytes: int = option(16 << 20, "Largest request.", group="Server")
    max_answer_bytes: int = option(
        1 << 30, "Largest answer that a request may need.", group="Server"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_loading(self)
        for name, least in (("batch_tokens", 1), ("max_queue", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: expected at least {least}; found {value}")
        for name in ("max_body_bytes", "max_answer_bytes"):
            if getattr(self, name) < 1 << 16:
                raise ConfigError(
                    f"{name}: expected at least {1 << 16}; found {getattr(self, name)}"
                )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: expected at least 1; found {self.threads}")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise ConfigError(f"max_wait_ms: expected 0 to 10000; found {self.max_wait_ms}")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port: expected 0 to 65535; found {self.port}")
        self._check_access()

    def _check_access(self) -> None:
        """A token that a header can carry, and one where others can reach the server."""
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigError("token: expected printable ASCII characters")
        if self.token is not None and len(self.token.split()) != 1:
            raise ConfigError("token: expected at least one character, and no spaces")
        if self.token is None and not self.insecure and not _is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached by others: set CACHEKD_SERVE_TOKEN (or --token), "
                "keep to 127.0.0.1, or pass --insecure where the network itself is closed"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
