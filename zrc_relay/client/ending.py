"""``Ending``: how a connection ended, for everyone who asks, before or after."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred


class Ending:
    """The end of something: with None in peace, with an ``error`` otherwise."""

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()
        """Fires once, at the end."""
        self.error: Exception | None = None
        """Why it ended, if not in peace."""
        self.has_come = False

    def begin(self, error: Exception | None) -> None:
        """It is over, and ``error`` is why; those who wait hear it at ``come``, when everything is put away."""
        self.has_come = True
        self.error = error

    def come(self) -> None:
        """Tell those who wait; once."""
        error = self.error
        if error is None:
            self.closed.callback(None)
        else:
            self.closed.errback(error)
            # Who does not look at ``closed`` has not asked; an unhandled-error report would only be noise.
            self.closed.addErrback(lambda _: None)

    def when_closed(self) -> Deferred[None]:
        """A Deferred of one's own that fires as ``closed`` does."""
        waiter: Deferred[None] = Deferred()

        def ended(result: Any) -> Any:
            if self.error is None:
                waiter.callback(None)
            else:
                waiter.errback(self.error)
            return result

        self.closed.addBoth(ended)
        return waiter
