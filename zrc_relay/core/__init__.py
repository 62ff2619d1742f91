"""What a relay *is*: pure code without Twisted, aioquic, clocks or randomness. ``now`` and random bytes come in as arguments."""
