"""A new generation of workers, with the code and the settings of now: what SIGHUP asks for.

Workers import the App themselves, so whoever is forked next has the new code. First a probe looks whether that can be worked
with at all; if not, the old generation simply stays. Then each worker is replaced, successor first. If none of the successors
boots, all goes back.

Where the settings lead to another database, the whole supervisor drains and begins again: whoever keeps house for the one cannot
give back the jobs of the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pgqueue.supervisor.probe import Facts
from pgqueue.supervisor.probing import Probing
from pgqueue.supervisor.workers import Workers

log = logging.getLogger(__name__)


class Reload:
    """The reload under way, if there is one. ``use``: makes everybody work by these Facts."""

    def __init__(self, workers: Workers, facts: Facts, use: Callable[[Facts], None], restart: Callable[[], None]) -> None:
        self.probing: Probing | None = None
        self.under_way = False
        self._workers = workers
        self._facts = facts  # of the present generation
        self._before: tuple[int, Facts] | None = None  # the generation to go back to
        self._last = workers.generation
        self._again = False
        self._use = use
        self._restart = restart  # also where the App was preloaded: only a fresh interpreter has the new code

    def begin(self, probe: Callable[[], Probing]) -> None:
        """A signal came. One that comes during a reload starts another after it: what its probe has seen may be old."""
        if self.under_way:
            self._again = True
            return
        log.info("reloading: looking whether the code and the settings of now can be worked with")
        self.under_way = True
        self.probing = probe()

    def probe_ended(self, code: int) -> None:
        """The probe has ended."""
        if self.probing is None:
            return
        answer, self.probing = self.probing.answer(code), None
        if answer == 0:
            self._restart()
        elif not isinstance(answer, Facts):
            log.error("not reloaded (exit code %d): generation %d stays", answer, self._workers.generation)
            self.under_way = False
        elif answer.database != self._facts.database:
            log.info("the settings lead to another database: nobody works for two at once")
            self._restart()
        else:
            self._before = self._workers.generation, self._facts
            self._last += 1
            self._change_to(self._last, answer)

    def follow(self, why_nobody_boots: str | None) -> bool:
        """See how it goes. True: another signal came meanwhile, and it is time to begin again."""
        if self.probing is not None:
            self.probing.enforce_limit()
        elif self._before is not None:
            generation = self._workers.generation
            if self._all_replaced():
                log.info("reloaded: all workers are of generation %d", generation)
                self._end()
            elif why_nobody_boots is not None and not self._any_of(generation):
                stays = self._before[0]
                log.error(
                    "not reloaded: no worker of generation %d starts (%s), generation %d stays",
                    generation,
                    why_nobody_boots,
                    stays,
                )
                self._workers.call_off_successors()
                self._change_to(*self._before)
                self._end()
        again, self._again = self._again and not self.under_way, self._again and self.under_way
        return again

    def _any_of(self, generation: int) -> bool:
        return any(child.booted and child.generation == generation for child in self._workers)

    def _all_replaced(self) -> bool:
        return all(
            place.child is not None and place.child.booted and place.child.generation == self._workers.generation
            for place in self._workers.places
        )

    def _change_to(self, generation: int, facts: Facts) -> None:
        self._workers.generation, self._facts = generation, facts
        self._use(facts)

    def _end(self) -> None:
        self._before = None
        self.under_way = False
