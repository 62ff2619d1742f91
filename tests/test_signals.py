"""What signals do, without sending any: the handlers that are installed, called as the interpreter calls them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.signals import Signals


class FakeReactor:
    """Runs what it is given at once, and remembers being stopped."""

    def __init__(self) -> None:
        self.stops = 0
        self.when_running: list[Callable[[], None]] = []

    def callWhenRunning(self, function: Callable[[], None]) -> None:  # noqa: N802 - Twisted's name
        self.when_running.append(function)

    def callFromThread(self, function: Callable[..., None], *arguments: object) -> None:  # noqa: N802 - the same
        function(*arguments)

    def stop(self) -> None:
        self.stops += 1


class FakeAudit:
    """Remembers the signals it is told of."""

    def __init__(self) -> None:
        self.signals: list[str] = []

    def signal(self, name: str) -> None:
        self.signals.append(name)


class FakeRelay:
    """Remembers what it is asked to do, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.audit = FakeAudit()

    def reopen_logs(self) -> None:
        self.asked.append("reopen")

    def reload(self) -> None:
        self.asked.append("reload")

    def stop_draining(self) -> None:
        self.asked.append("stop draining")


class SignalTests(SynchronousTestCase):
    """Issue "reload" and "stopping": SIGHUP reopens and reloads; SIGTERM and SIGINT stop in peace, the second one at once."""

    def setUp(self) -> None:
        self.handlers: dict[int, Callable[[int, None], None]] = {}
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.reactor, self.relay = FakeReactor(), FakeRelay()
        relay: Any = self.relay
        service = Signals(relay, self.reactor)
        service.startService()
        self.assertEqual(self.handlers, {}, "Twisted installs its own first")
        for function in self.reactor.when_running:
            function()

    def send(self, number: signal.Signals) -> None:
        self.handlers[number](number, None)

    def test_those_and_no_others_are_handled(self) -> None:
        self.assertEqual(set(self.handlers), {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    def test_hanging_up_goes_on_in_new_files_first_so_that_what_the_reload_says_is_in_them(self) -> None:
        self.send(signal.SIGHUP)
        self.assertEqual((self.relay.asked, self.reactor.stops), (["reopen", "reload"], 0))
        self.assertEqual(self.relay.audit.signals, ["SIGHUP"])

    def test_the_first_one_stops_in_peace_and_the_second_at_once(self) -> None:
        self.send(signal.SIGTERM)
        self.assertEqual((self.relay.asked, self.reactor.stops), ([], 1))
        self.send(signal.SIGINT)
        self.assertEqual((self.relay.asked, self.reactor.stops), (["stop draining"], 1))
        self.assertEqual(self.relay.audit.signals, ["SIGTERM", "SIGINT"])
