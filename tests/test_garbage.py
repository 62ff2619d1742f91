"""The garbage collector of a relay process: it never looks at everything while somebody is there."""

from __future__ import annotations

from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay import garbage
from zrc_relay.garbage import MANY, Garbage


class GarbageTests(SynchronousTestCase):
    """R3.3: no pause grows with the number of connections."""

    def setUp(self) -> None:
        self.did: list[str] = []
        self.begun = self.present = 0
        names = ("collect", "freeze", "unfreeze", "set_threshold")
        self.patch(garbage, "gc", SimpleNamespace(**{
            name: lambda *_, name=name: self.did.append(name) for name in names
        }))
        self.garbage = Garbage(lambda: self.begun, lambda: self.present)

    def look(self) -> list[str]:
        """What a look has done."""
        self.did.clear()
        self.garbage.look()
        return self.did[:]

    def test_the_program_itself_is_frozen_at_the_start(self) -> None:
        self.garbage.start()
        self.assertEqual(self.did, ["collect", "freeze", "set_threshold"])

    def test_new_connections_are_frozen_some_at_a_time(self) -> None:
        self.begun = self.present = MANY - 1
        self.assertEqual(self.look(), [])
        self.begun = self.present = MANY
        self.assertEqual([self.look(), self.look()], [["freeze"], []])
        self.begun += MANY
        self.assertEqual(self.look(), ["freeze"])

    def test_everything_is_looked_at_once_when_nobody_is_there(self) -> None:
        self.assertEqual(self.look(), [])
        self.begun = self.present = MANY
        self.look()
        self.present = 1
        self.assertEqual(self.look(), [])
        self.present = 0
        self.assertEqual([self.look(), self.look()], [["unfreeze", "collect", "freeze"], []])
