"""The command ``zrc-relay``."""
