"""The units of a run, given to actors one at a time, until all are committed or given up.

Comes in: actors, and the orders of a run. Goes out: an `Outcome`. Units of dead actors are given to
others; one that fails is tried again behind all others. So units that kill meet each other at the
end, and may stand side by side before it, as those of long documents do. Hence a place is blamed
for a death only where its unit did no harm before, and goes on elsewhere among those that wait.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from typing import Any

from cachekd.engines import Kit, Orders, Outcome, Told
from cachekd.engines._actors import PLACED_SECONDS, Actors, Slot, no_place, plain, short
from cachekd.engines._claims import POLL_SECONDS, Claim
from cachekd.errors import ConfigError, MismatchError, StoreError, WorkerError
from cachekd.store.retries import count

# Not the unit's fault: the next one would fail as well.
_FATAL = (ConfigError, StoreError, MismatchError)
_log = logging.getLogger(__name__)


class Round:
    """The units of a run, and what becomes of them.

    Args:
        actors: who does them.
        kit: makes what actors are sent.
        job: under the plan that counts.
        orders: what is to be done.
        retries: tries of a unit beyond the first.
    """

    def __init__(self, actors: Actors, kit: Kit, job: Any, orders: Orders, retries: int) -> None:
        self._actors, self._kit, self._job, self._orders = actors, kit, job, orders
        self._ray, self._retries = actors.ray, retries
        self._opening = self._ray.put(kit.opening(job))
        self._tokens = dict(orders.units)
        self._untried = deque(number for number, _ in orders.units)
        self._later: deque[int] = deque()  # those to be tried again, and those that others have
        self._tries: Counter[int] = Counter()
        self._failed: dict[int, str] = {}  # and not done since
        self._warned: set[str] = set()
        self._given_up: Exception | None = None  # why no place is left
        self._beginning: dict[Any, Slot] = {}
        self._working: dict[Any, tuple[Slot, int]] = {}
        self._idle: list[Slot] = []
        self._pace = 0.0  # seconds a token, of the slowest unit so far
        self._begun: dict[int, float] = {}
        self._fatal: Exception | None = None
        self._since = time.monotonic()  # when an actor was last at work or ready

    def run(self) -> Outcome:
        """Give, wait, and look what came of it, until nothing is left or may be begun."""
        for slot in self._actors.slots:
            self._begin(slot)
        while True:
            over = self._fatal is not None or self._orders.stop_asked() or not self._give()
            if not self._working and (over or self._given_up or not self._left()):
                break
            self._wait()
        if self._fatal is not None:
            raise self._fatal
        if self._given_up is not None and not self._failed:
            raise self._given_up
        ended = str(self._given_up or "")
        return Outcome(left=self._left(), failed=self._failed, ended=ended)

    def _left(self) -> int:
        return len(self._untried) + len(self._later)

    def _begin(self, slot: Slot) -> None:
        self._beginning[slot.actor.begin.remote(self._opening)] = slot

    def _give(self) -> bool:
        """Units to actors that have none; False where the time left is too short for the next."""
        busy: list[int] = []
        allowed = True
        while self._idle and self._left() and allowed:
            slot = self._idle[-1]
            number = self._next(slot)
            needed = self._pace * self._tokens[number]
            allowed = 0 < self._orders.seconds_left() >= needed
            found = self._orders.claim(number) if allowed else Claim.BUSY
            if found is Claim.BUSY:
                busy.append(number)
            elif found is Claim.OURS:
                self._idle.pop()
                ref = slot.actor.do.remote(number, self._kit.samples(self._job, [number]))
                self._working[ref] = slot, number
                self._begun[number] = time.monotonic()
            else:
                self._failed.pop(number, None)
        self._later.extend(busy)
        return allowed

    def _next(self, slot: Slot) -> int:
        """The unit that a place tries next; there is one."""
        if not self._untried:
            return self._later.popleft()
        place = slot.deaths * len(self._untried) // slot.most_deaths
        number = self._untried[place]
        del self._untried[place]
        return number

    def _wait(self) -> None:
        refs = [*self._working, *self._beginning]
        if refs:
            ready, _ = self._ray.wait(refs, timeout=POLL_SECONDS)
        else:  # only units of others are left
            time.sleep(POLL_SECONDS)
            ready = []
        for ref in ready:
            if ref in self._beginning:
                self._began(ref, self._beginning.pop(ref))
            else:
                self._did(ref, *self._working.pop(ref))
        self._look_for_actors()

    def _began(self, ref: Any, slot: Slot) -> None:
        """An actor is ready, or is no more."""
        try:
            self._ray.get(ref)
        except Exception as error:  # of the teacher or the cache, as the actor sees them
            if self._actors.died(error):
                self._died(slot, error)
            else:
                self._fatal = self._fatal or plain(error)
        else:
            self._idle.append(slot)

    def _did(self, ref: Any, slot: Slot, number: int) -> None:
        """A unit is committed, or is not."""
        try:
            told: Told = self._ray.get(ref)
        except Exception as error:  # whatever a teacher raises
            self._went_wrong(error, slot, number)
            return
        slot.deaths, slot.done = 0, slot.done + 1
        self._failed.pop(number, None)
        self._idle.append(slot)
        seconds = time.monotonic() - self._begun[number]
        self._pace = max(self._pace, seconds / self._tokens[number])
        self._orders.scored(self._tokens[number])
        for warning in told.warnings:
            if warning not in self._warned:  # each actor says what concerns the teacher
                _log.warning("%s", warning)
        self._warned.update(told.warnings)
        for kind, times in told.happened.items():
            count(kind, times)

    def _went_wrong(self, error: Exception, slot: Slot, number: int) -> None:
        if self._actors.died(error):
            blamed = not self._tries[number]
            self._again(number, f"its actor died: {short(error)}")
            self._died(slot, error, blamed=blamed)
            return
        self._idle.append(slot)
        found = plain(error)
        if isinstance(found, _FATAL):
            self._fatal = self._fatal or found
            self._later.append(number)
        else:
            self._again(number, str(found))

    def _again(self, number: int, why: str) -> None:
        """A unit that went wrong is tried once more, behind all others, or given up."""
        self._tries[number] += 1
        tries = self._tries[number]
        self._failed[number] = f"{why} ({tries} {'try' if tries == 1 else 'tries'})"
        if tries <= self._retries:
            _log.warning("unit %d is tried again: %s", number, why)
            self._later.append(number)

    def _died(self, slot: Slot, error: Exception, *, blamed: bool = True) -> None:
        try:
            self._actors.replace(slot, error, blamed=blamed)
        except WorkerError as last:
            _log.warning("%s; their place is given up", last)
            if not (self._idle or self._working or self._beginning):
                self._given_up = last
            return
        self._begin(slot)

    def _look_for_actors(self) -> None:
        """Nobody is at work, and those who begin find no place: then it is over."""
        if self._working or self._idle or not self._beginning:
            self._since = time.monotonic()
            return
        if any(map(self._actors.is_placed, self._beginning.values())):
            self._since = time.monotonic()  # it loads its teacher, which may take long
        if time.monotonic() - self._since > PLACED_SECONDS:
            self._fatal = self._fatal or no_place()
