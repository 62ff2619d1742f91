"""Relays to measure beside: each does no more than pair connections two by two and pass datagrams on."""
