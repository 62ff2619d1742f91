"""zrc-relay: a QUIC relay for devices that cannot reach each other."""

__version__ = "0.1.0"
