"""What others have captured already, before anything is scored.

Comes in: a job whose settings name a shared location. Goes out: the job of what is left.
"""

from __future__ import annotations

from typing import Any

from cachekd.capture.job import Job
from cachekd.capture.prepare import prepare_job
from cachekd.data.packed import Keys
from cachekd.sharing.reuse import reuse


def with_reused(job: Job) -> tuple[Job, dict[str, Any]]:
    """The job without the records that a shared location holds, and what a report says of it.

    Raises:
        CacheNotFound: there is no cache at the location.
        CorruptCache: a shard there is altered; names it.
    """
    location = job.config.reuse
    if location is None:
        return job, {}
    wanted = Keys.joined([job.plan.packed_keys(number) for number in job.todo])
    part = job.wanted if job.wanted is not None else job.attention_wanted
    rows = None if part is None else part.__getitem__
    done = reuse(location, job.identity, wanted, job.location, job.documents.__getitem__, rows)
    told = {
        "records_reused": done.records,
        "bytes_reused": done.bytes,
        "reused_from": ", ".join(done.caches) or "no cache of this teacher and capture",
    }
    return (prepare_job(job.config) if done.records else job), told
