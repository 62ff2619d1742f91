"""An end of the socket pair between a parent and a worker: AMP, without its lines in the log for each pair made and lost.

What they would say is in the log already, by the name of the worker, and why it ended.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure


class PairEnd(amp.AMP):
    """See the module's docstring."""

    def makeConnection(self, transport: Any) -> None:
        """The other end can be talked to."""
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The other end is gone."""
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None
