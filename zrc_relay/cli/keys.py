"""``zrc-relay keygen``: a new Ed25519 key for a device or a peer."""

from __future__ import annotations

from pathlib import Path

import click
from nacl.signing import SigningKey

from zrc_relay.cli.console import print_fields
from zrc_relay.cli.keyfiles import write_key
from zrc_relay.core.token import key_id

DEFAULT_FILE = "zrc-relay.key"


@click.command()
@click.argument("file", type=Path, default=DEFAULT_FILE)
@click.option("--force", is_flag=True, help="Replace FILE if it exists; the key in it is lost.")
def keygen(file: Path, *, force: bool) -> None:
    """Make an Ed25519 key, for a device or a peer.

    The key is written to FILE (zrc-relay.key unless told), which only you can read: whoever has a device's key can mint tokens in
    its name. What is printed is no secret: the public key, which goes into the relay's file of device keys, and the id, by which
    tokens name their device and their peer.
    """
    key = SigningKey.generate()
    write_key(file, key, replace=force)
    public_key = bytes(key.verify_key)
    print_fields({"key file": str(file), "public key": public_key.hex(), "id": key_id(public_key).hex()})
