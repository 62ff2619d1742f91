"""How bytes get in and out: UDP, QUIC connections, the table that finds them, and the way of a packet."""
