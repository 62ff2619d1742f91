"""Reading everything again while the relay runs, on SIGHUP or by an administrator (R8).

Theory of operation
-------------------
A reload has two parts. *Prepare* reads the settings from where they came from at the start, and every file they name. It runs in
a thread, because ten thousand device keys take a while and packets do not wait. Each *participant*, a part of the relay with
files of its own, prepares too. *Commit* puts all of it in force at once, in the reactor. **If anything is wrong, nothing is
changed**, and each problem is told in one line.

Settings that ``RELOADABLE`` does not name keep their values until a restart. They are no problem; they are named in the report
each time, until the source agrees with the running relay again.

Two reloads do not overlap: the second begins when the first is done, so that whoever asks gets what is in the files *now*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from zrc_relay.config import Config, ConfigError
from zrc_relay.engine import StartError
from zrc_relay.inputs import Inputs
from zrc_relay.reloadable import RELOADABLE

Result = TypeVar("Result")

MAX_PROBLEMS: Final = 20
"""Problems that the log gets a line for; the report has all of them."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did. With ``problems`` it did nothing, and the rest is empty."""

    changed: tuple[str, ...] = ()
    """The settings with other values than before, or whose file has other contents, sorted."""
    not_reloadable: tuple[str, ...] = ()
    """The settings whose sources say something else than what is in force, and which need a restart."""
    problems: tuple[str, ...] = ()
    """Everything that is wrong, each in one line."""
    ended: int = 0
    """Allocations that ended because their device is no longer known."""

    @property
    def is_done(self) -> bool:
        """Whether what is in the sources is in force."""
        return not self.problems


class Participant(Protocol):
    """A part of the relay that reads files of its own again."""

    @property
    def name(self) -> str | None:
        """What problems begin with."""
        ...

    def prepare_reload(self) -> Any:
        """Read and check, in a thread; nothing is changed yet. Whatever it raises is a problem, its text the line for it."""
        ...

    def reload(self, prepared: Any) -> None:
        """Use what ``prepare_reload`` gave."""
        ...


Run = Callable[[Callable[[], Any]], "Deferred[Any]"]
"""Runs a function that may take long, somewhere else."""


class ReloadRefused(Exception):
    """Nothing was changed, because what was read cannot be put in force everywhere; the message has a line for each reason."""


Commit = Callable[[Inputs], "Deferred[int]"]
"""Puts other inputs in force, all of it or nothing (``ReloadRefused``); how many allocations that ended."""


class Reloader:
    """See the module's docstring.

    ``inputs`` is what is in force, ``read`` reads it again, ``run`` runs that, ``commit`` puts other inputs in force.
    """

    _log = Logger()

    def __init__(self, inputs: Inputs, read: Callable[[], Inputs], *, run: Run, commit: Commit) -> None:
        self.inputs = inputs
        self._read = read
        self._run = run
        self._commit = commit
        self._lock: DeferredLock = DeferredLock()
        self.participants: list[Participant] = []
        self.done = 0
        """Reloads that put what they read in force."""
        self.refused = 0
        """Reloads that changed nothing because something was wrong."""
        self.is_failing = False
        """Whether the last one was refused."""

    def reload(self) -> Deferred[ReloadReport]:
        """Reload; fires when it is done, and never with a failure."""
        done: Deferred[ReloadReport] = self._lock.run(self._reload)
        return done.addErrback(self._broke)

    async def _reload_now(self) -> ReloadReport:
        participants = list(self.participants)
        prepared, problems = await self._run(lambda: self._prepare(participants))
        if prepared is None:
            return self._refused(problems)
        inputs, of_participants = prepared
        before = self.inputs
        effective, not_reloadable = merge(before.config, inputs.config)
        inputs = replace(inputs, config=effective)
        changed = changes(before, inputs)
        try:
            ended: int = await self._commit(inputs)
        except ReloadRefused as error:
            return self._refused(str(error).splitlines())
        self.inputs = inputs
        for participant, what in zip(participants, of_participants, strict=True):
            participant.reload(what)
        self.done += 1
        self.is_failing = False
        for name in not_reloadable:
            self._log.warn("{setting} was changed; it needs a restart", event="reload.restart_needed", setting=name)
        self._log.info(
            "reloaded; changed: {changed}; allocations ended: {ended}", event="reload.done",
            changed=changed, not_reloadable=not_reloadable, ended=ended,
        )
        return ReloadReport(changed, not_reloadable, (), ended)

    def _reload(self) -> Deferred[ReloadReport]:
        return Deferred.fromCoroutine(self._reload_now())

    def _prepare(self, participants: Sequence[Participant]) -> tuple[tuple[Inputs, list[Any]] | None, list[str]]:
        problems: list[str] = []
        inputs: Inputs | None = None
        try:
            inputs = self._read()
        except ConfigError as error:
            problems += [str(problem) for problem in error.problems]
        except StartError as error:
            problems += str(error).splitlines()
        prepared = []
        for participant in participants:
            try:
                prepared.append(participant.prepare_reload())
            except Exception as error:
                problems += [f"{participant.name}: {line}" for line in str(error).splitlines() or [repr(error)]]
        return (None if problems or inputs is None else (inputs, prepared)), problems

    def _refused(self, problems: list[str]) -> ReloadReport:
        self.refused += 1
        self.is_failing = True
        for problem in problems[:MAX_PROBLEMS]:
            self._log.error("nothing is reloaded: {problem}", event="reload.refused", problem=problem)
        return ReloadReport(problems=tuple(problems))

    def _broke(self, failure: Any) -> ReloadReport:
        self.refused += 1
        self.is_failing = True
        self._log.failure("a reload failed", failure, event="reload.failed")
        return ReloadReport(problems=("an error in the relay; its log has more",))


def merge(current: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """``wanted``, but with the values of ``current`` where only a restart can change them; and which settings these are."""
    kept = {
        item.name: getattr(current, item.name)
        for item in fields(Config)
        if item.name not in RELOADABLE and getattr(current, item.name) != getattr(wanted, item.name)
    }
    return replace(wanted, **kept), tuple(sorted(kept))


def changes(before: Inputs, after: Inputs) -> tuple[str, ...]:
    """The settings that differ, in value or in the contents of their file."""
    names = {item.name for item in fields(Config) if getattr(before.config, item.name) != getattr(after.config, item.name)}
    if before.credentials.certificate_sha256 != after.credentials.certificate_sha256:
        names.add("quic_cert_path")
    if before.device_keys.changes_to(after.device_keys):
        names.add("device_keys_path")
    return tuple(sorted(names))
