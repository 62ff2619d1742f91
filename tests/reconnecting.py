"""Two ends of an allocation that connect again whenever they must, on a simulated network."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.dialing import Resilient
from tests.harness import World
from zrc_relay.core.codes import Role


def pending(world: World) -> list[str]:
    """Whatever is still scheduled for clients."""
    owners = [getattr(call.func, "__self__", None) for call in world.clock.getDelayedCalls()]
    return [type(owner).__module__ for owner in owners if type(owner).__module__.startswith("zrc_relay.client")]


class Scene(World):
    """A device that connects again, and a peer that does too."""

    def __init__(self, *, supplier: Any = None, **changes: Any) -> None:
        super().__init__(**changes)
        self.first_token = self.token()
        self.device = Resilient(self, Role.DEVICE, token=self.first_token, supplier=supplier)
        self.peer = Resilient(self, Role.PEER, token=self.first_token)
        self.run(0.5)
        if not (self.device.is_connected and self.peer.is_connected):
            msg = f"not connected: {self.device.error}, {self.peer.error}"
            raise AssertionError(msg)

    def exchange(self, case: SynchronousTestCase, text: bytes = b"ping") -> None:
        """Both ends hear each other."""
        self.device.send(text)
        self.peer.send(text)
        self.run(0.2)
        case.assertEqual((self.device.got[-1], self.peer.got[-1]), (text, text))
