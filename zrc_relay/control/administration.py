"""The admin endpoint as a part of the service tree: everything that it takes, built out of the configuration.

::

    administration(MultiService)    stopService: whoever listens to events is told
    `- admin                        the web site
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.task import deferLater

from zrc_relay.config_endpoints import StreamEndpoint
from zrc_relay.control.admin import Admin
from zrc_relay.control.audit import AuditLog
from zrc_relay.control.auth import AdminToken, Gate
from zrc_relay.control.endpoints import SiteService
from zrc_relay.control.events import EventHub
from zrc_relay.control.management import Clocks
from zrc_relay.control.operations import Operations

FAREWELL: Final = 0.1
"""Seconds that a last word to listeners has to get out before their connections are cut."""


class Administration(MultiService):
    """The admin endpoint on ``listen_on``.

    It does ``operations`` for whoever has one of ``tokens``, or with ``unix_trust`` the right user id.

    ``tokens`` reads them, now and whenever the relay's configuration is reloaded.
    """

    def __init__(
        self,
        operations: Operations,
        listen_on: StreamEndpoint,
        *,
        tokens: Callable[[], tuple[AdminToken, ...]],
        unix_trust: bool,
        audit: AuditLog,
        hub: EventHub,
        clocks: Clocks,
    ) -> None:
        super().__init__()
        self.setName("administration")
        self._hub = hub
        self._reactor = clocks.reactor
        self._tokens = tokens
        self.gate = Gate(tokens(), unix_trust=unix_trust, now=clocks.now)
        self.operations = operations
        self.admin = Admin(operations, self.gate, audit, hub, clocks.reactor)
        self.site = SiteService("admin", listen_on, self.admin.resource(), clocks.reactor)
        self.site.site.on_refused = self.admin.note_refused
        self.addService(self.site)

    def prepare_reload(self) -> tuple[tuple[AdminToken, ...], Any]:
        """Read tokens and certificate again; raises when they cannot be used."""
        return self._tokens(), self.site.prepare_reload()

    def reload(self, prepared: tuple[tuple[AdminToken, ...], Any]) -> None:
        """Use them. Who listens to events with a token that is no longer there is sent away."""
        self.gate.tokens, certificate = prepared
        self.site.reload(certificate)
        self.admin.recheck()

    def stopService(self) -> Any:
        """Tell listeners, and stop; fires when the port is closed."""
        if not self._hub.close():
            return super().stopService()
        return deferLater(self._reactor, FAREWELL, super().stopService)
