"""An end of the socket pair between a parent and a worker: AMP with two of its habits taken away.

It has no lines in the log for each pair made and lost: what they would say is there already, by the name of the worker, and why
it ended. And whoever stops waiting for an answer, because a client has gone or time is up, does not end the pair.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

from zrc_relay.tasks import shielded


class PairEnd(amp.AMP):
    """See the module's docstring."""

    def makeConnection(self, transport: Any) -> None:
        """The other end can be talked to."""
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def callRemote(self, commandType: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N802, N803 - Twisted's names
        """As AMP's, but an answer that nobody waits for any more does no harm: AMP ends the connection when one comes."""
        answer = super().callRemote(commandType, *arguments, **named)
        return answer if answer is None else shielded(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The other end is gone."""
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None
