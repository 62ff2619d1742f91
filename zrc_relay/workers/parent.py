"""A relay of several processes: what an operator sees (``Front``) here, and a ``Crew`` of workers that forward.

::

    ParentService(Front)            stopService: not ready -> refuse new -> drain -> close -> stop children
    |- workers                      the crew: its sockets, its processes
    `- ...                          see ``Front``

What workers tell is put where their own parts of a single process would have put it: events into the hub, records into the stream
of security events, lines into the log.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from zrc_relay.config import Config
from zrc_relay.control.fleet import Fleet
from zrc_relay.control.fleet_watch import FleetWatch
from zrc_relay.control.watch import Sights
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.engine import Surroundings
from zrc_relay.front import Front
from zrc_relay.logs.levels import LogFormat, LogLevel
from zrc_relay.quic.steering import SteeringRefused, open_group
from zrc_relay.workers.berth import Watchfulness
from zrc_relay.workers.crew import Crew
from zrc_relay.workers.orders import Kind, Orders, Said
from zrc_relay.workers.sockets import Sockets


class ParentService(Front):
    """A relay whose ``count`` workers forward; the other arguments are those of ``Front``."""

    _log = Logger()

    def __init__(
        self,
        config: Config,
        surroundings: Surroundings,
        load: Callable[[], Config] | None = None,
        *,
        count: int,
    ) -> None:
        super().__init__(config, surroundings, load)
        if count > 1 and not self._can_steer():
            count = 1
        self.fleet = Fleet(count, surroundings.now, self._announce)
        self.crew = Crew(
            Sockets(config.listen_addr, config.listen_port, config.worker_port_base, count),
            self._first_orders,
            self.fleet,
            surroundings,
            secret=self.reset_secret,
            logs_security=config.security_log is not None,
            places=config.max_allocations,
            lists=self.lists,
            form=self._form,
            watchfulness=Watchfulness(config.worker_stall, pins=config.worker_affinity),
            listener=self,
            on_ready=self._all_there,
        )
        self._complete(self.crew, self.crew.traffic, (self.crew,), (self.crew.watching,), self._make_watch)

    def _can_steer(self) -> bool:
        """Whether this kernel gives packets to workers; says so once when it does not."""
        try:
            for sock in open_group("127.0.0.1", 0, 2):
                sock.close()
        except SteeringRefused as error:
            self._log.warn(
                "this kernel cannot steer packets to workers ({problem}); one worker runs", event="workers.no_steering",
                problem=str(error),
            )
            return False
        return True

    def told(self, index: int, said: tuple[Said, ...], lost: int) -> None:
        """See ``berth.Told``."""
        if lost:
            self._log.warn(
                "worker {worker} had more to tell than could wait: {lost} things are lost", event="worker.lost_words",
                worker=index, lost=lost,
            )
        for one in said:
            values = one.values
            match one.kind:
                case Kind.EVENT:
                    self.hub.event(one.name, **values)
                case Kind.RECORD:
                    self.security_log.keep(values)
                case Kind.LINE:
                    self._write(values["line"], LogLevel(one.name))

    def _announce(self, name: str, **fields: object) -> None:
        if not self.crew.is_stopping:
            self.hub.announce(name, **fields)

    def _make_watch(self, sights: Sights) -> FleetWatch:
        return FleetWatch(
            sights, self.fleet, self.crew.traffic,
            is_draining=lambda: self.drain_deadline is not None, entries=lambda: len(self.lists),
        )

    def _write(self, line: str, level: LogLevel) -> None:
        if self.log is not None:
            self.log.write(line, level)
        else:
            self._log.info("{text}", event="worker.line", text=line)  # which says its level itself

    def _form(self) -> LogFormat:
        return self.log.form if self.log is not None else LogFormat.JSON

    def _first_orders(self) -> tuple[Orders, DeviceKeys]:
        inputs = self.reloader.inputs
        return Orders.of(inputs, self.settings, self._form()), self.pins.over(self.device_keys)

    def _all_there(self) -> None:
        if not self.ready and self.drain_deadline is None:
            self._is_ready()
