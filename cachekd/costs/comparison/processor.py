"""Processor time, which other work on the machine hardly changes. In: nothing. Out: seconds."""

from __future__ import annotations

import resource

_WHOSE = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that ended."""
    own, ended = (resource.getrusage(who) for who in _WHOSE)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
