"""``Routes``: which connection a packet is for, by its Destination Connection ID.

The table has our ids that were issued, the id that a client chose for its handshake, and for ``RETIRED_ID_LIFETIME`` those that
were retired lately and those of connections that their client has closed, so that late packets do not look like a stranger's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zrc_relay.quic.link import RelayConnection

RETIRED_ID_LIFETIME: Final = 3.0
"""Seconds that a retired connection id still leads to its connection: some PTOs on any usable path."""
MAX_RETIRED_IDS: Final = 65536


class Routes:
    """See the module's docstring. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.table: dict[bytes, RelayConnection] = {}
        """The one table for all the time that there is: whoever looks up each packet may keep it at hand."""
        self._retired: OrderedDict[bytes, tuple[float, RelayConnection]] = OrderedDict()
        """Until when an id is known for whom, soonest first."""

    def retire(self, connection_id: bytes, connection: RelayConnection, now: float) -> None:
        """Packets to ``connection_id`` are late from now on: still the connection's for a while, which drops them."""
        self._retired.pop(connection_id, None)  # it may have been retired before its connection ended
        if len(self._retired) >= MAX_RETIRED_IDS:
            self._forget_retired()
        self._retired[connection_id] = (now + RETIRED_ID_LIFETIME, connection)

    def sweep(self, now: float) -> None:
        """Forget the ids that were retired long enough ago."""
        while self._retired and next(iter(self._retired.values()))[0] <= now:
            self._forget_retired()

    def remove(self, connection: RelayConnection, now: float) -> None:
        """``connection`` is over. Its ids are nobody's any more, or late if its client closed it (RFC 9000 §10.2.2)."""
        for connection_id in (*connection.quic.own_ids, connection.first_destination_id):
            if self.table.get(connection_id) is not connection:
                continue
            if connection.is_draining:
                self.retire(connection_id, connection, now)
            else:
                del self.table[connection_id]

    def _forget_retired(self) -> None:
        connection_id, (_, connection) = self._retired.popitem(last=False)
        if self.table.get(connection_id) is connection:  # a client may choose the same id for its next connection
            del self.table[connection_id]
