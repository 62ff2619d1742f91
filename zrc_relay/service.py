"""A relay of one process: what an operator sees (``Front``) and what forwards (``Engine``) put together.

::

    RelayService(Front)             stopService: not ready -> refuse new -> drain -> close -> stop children
    |- engine                       relay, endpoint, sweeper, UDP sockets
    `- ...                          see ``Front``
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed

from zrc_relay.config import Config
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.sampler import Sampler
from zrc_relay.control.watch import Sights, Watch
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.engine import Engine, EngineSettings, StartError, Surroundings, listen
from zrc_relay.front import Front, admin_tokens, reset_secret
from zrc_relay.inputs import Inputs, load_device_keys

__all__ = ["RelayService", "StartError", "admin_tokens", "load_device_keys", "reset_secret"]


class Here:
    """A ``Forwarding`` by the engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def use_keys(self, keys: DeviceKeys) -> Deferred[int]:
        """See ``Forwarding``."""
        return succeed(self._engine.use_keys(keys))

    def lists_in_force(self) -> Deferred[None]:
        """See ``Forwarding``; the lists are those of the front."""
        return succeed(None)

    def put_in_force(self, inputs: Inputs, settings: EngineSettings, keys: DeviceKeys) -> Deferred[int]:
        """See ``Forwarding``."""
        config = inputs.config
        return succeed(self._engine.commit(settings, inputs.credentials, keys, config.allow, config.block))

    def drain(self, deadline: float) -> Deferred[None]:
        """See ``Forwarding``."""
        return self._engine.drain(deadline)


class RelayService(Front):
    """A whole relay in this process; see ``Front`` for the arguments."""

    def __init__(self, config: Config, surroundings: Surroundings, load: Callable[[], Config] | None = None) -> None:
        super().__init__(config, surroundings, load)
        self.engine = Engine(
            self.settings, self.reloader.inputs.credentials, self.pins.over(self.device_keys), self.lists, self.security_log,
            surroundings=surroundings, secret=self.reset_secret,
            make_ports=listen(config.listen_addr, config.listen_port, surroundings.reactor),
        )
        self.relay, self.endpoint = self.engine.relay, self.engine.endpoint
        self.qlogs, self.quic, self.sweeper = self.engine.qlogs, self.engine.quic, self.engine.sweeper
        self.sampler = Sampler(self.relay, self.endpoint, surroundings.reactor, surroundings.now)
        traffic = LocalTraffic(self.relay, self.endpoint, self.qlogs, self.sampler, self._clocks)
        watched = (self.sampler,) if config.admin_endpoint is not None else ()
        self._complete(Here(self.engine), traffic, (self.engine, *watched), (self.sweeper,), self._make_watch)

    def startService(self) -> None:
        """Start, and be ready."""
        super().startService()
        self._is_ready()

    def _make_watch(self, sights: Sights) -> Watch:
        return Watch(sights, self.relay, connections=self.endpoint, ports=lambda: self.quic.ports)
