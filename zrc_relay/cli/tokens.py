"""``zrc-relay token``: tokens are minted by devices, and inspected by whoever wonders why one is refused (PROTOCOL §3)."""

from __future__ import annotations

import os
import time
from typing import Final

import click
from nacl.signing import SigningKey

from zrc_relay.cli.console import print_fields, print_json, span, when
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.cli.params import amount, hex_bytes, key_file, public_key, token_text
from zrc_relay.config_units import ByteRate, Duration, Size
from zrc_relay.core.token import MAX_BANDWIDTH_LIMIT, RelayToken, key_id

MAX_QUOTA: Final = 2**64 - 1
MAX_EXPIRES: Final = 2**64 - 1
LIFETIME: Final = Duration("1s", "3650d")
BANDWIDTH: Final = ByteRate("1 B/s", f"{MAX_BANDWIDTH_LIMIT} B/s")
QUOTA: Final = Size("1 B", f"{MAX_QUOTA} B")


def expiry(text: str) -> int:
    """When a token expires, in Unix seconds: a duration from now on, with its unit, or a Unix time."""
    text = text.strip()
    now = int(time.time())
    if not (text.isascii() and text.isdigit()):
        return now + max(1, int(amount(LIFETIME)(text)))
    if len(text) > 20 or int(text) > MAX_EXPIRES:
        msg = f"{text} is no Unix time of 64 bits"
        raise click.BadParameter(msg)
    if int(text) <= now:
        msg = f"the Unix time {text} has passed; a duration has a unit: {text}s"
        raise click.BadParameter(msg)
    return int(text)


@click.group()
def token() -> None:
    """Mint and inspect relay tokens.

    A token is how a device lets one peer meet it at one relay: it names relay, allocation, device and peer, an expiry and limits,
    and is signed by the device. Both ends show the same token to the relay.
    """


@token.command()
@click.option("--key", required=True, metavar="FILE", type=key_file, help="The device's key file; it signs.")
@click.option("--relay-id", required=True, metavar="HEX", type=hex_bytes(16), help="The relay's id, as in its configuration.")
@click.option("--peer-id", metavar="HEX", type=hex_bytes(32), help="The peer's id, 64 hex digits.")
@click.option(
    "--peer-key", metavar="HEX|FILE", type=public_key,
    help="In place of --peer-id: the peer's public key, 64 hex digits, or its key file.",
)
@click.option("--allocation-id", metavar="HEX", type=hex_bytes(16), help="32 hex digits; random unless told.")
@click.option(
    "--expires", metavar="DURATION|UNIX", type=expiry, default="1h", show_default=True,
    help='How long it is valid, such as "8h", or the Unix time at which it expires.',
)
@click.option(
    "--bandwidth", metavar="RATE", type=amount(BANDWIDTH),
    help='Bandwidth to ask for, such as "10 Mbit/s"; the tier\'s own unless told.',
)
@click.option(
    "--quota", metavar="SIZE", type=amount(QUOTA), help='Bytes to ask for, such as "1 GB"; the tier\'s own unless told.',
)
def mint(
    *,
    key: SigningKey,
    relay_id: bytes,
    peer_id: bytes | None,
    peer_key: bytes | None,
    allocation_id: bytes | None,
    expires: int,
    bandwidth: int | None,
    quota: int | None,
) -> None:
    """Mint a token with a device's key; prints its text form."""
    if (peer_id is None) == (peer_key is None):
        msg = "give either --peer-id or --peer-key"
        raise click.UsageError(msg)
    if peer_id is None:
        peer_id = key_id(peer_key or b"")
    if not any(peer_id):
        msg = "a peer id of zeros is nobody's"
        raise BadInput(msg)
    made = make_token(
        key,
        relay_id=relay_id,
        peer_id=peer_id,
        allocation_id=allocation_id,
        expires_at=expires,
        bandwidth_limit=bandwidth or 0,
        quota_bytes=quota or 0,
    )
    click.echo(made.to_text())


def make_token(
    key: SigningKey,
    *,
    relay_id: bytes,
    peer_id: bytes,
    expires_at: int,
    allocation_id: bytes | None = None,
    bandwidth_limit: int = 0,
    quota_bytes: int = 0,
) -> RelayToken:
    """A token signed by the device's ``key``; for a random allocation unless ``allocation_id`` is given."""
    unsigned = RelayToken(
        relay_id=relay_id,
        allocation_id=allocation_id or os.urandom(16),
        device_id=key_id(bytes(key.verify_key)),
        peer_id=peer_id,
        expires_at=expires_at,
        bandwidth_limit=bandwidth_limit,
        quota_bytes=quota_bytes,
    )
    return unsigned.sign(key)


@token.command()
@click.argument("text", type=token_text, default="-")
@click.option(
    "--device-key", metavar="HEX|FILE", type=public_key,
    help="Check the signature with this public key, 64 hex digits, or that of this key file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(text: RelayToken, device_key: bytes | None, *, as_json: bool) -> None:
    """Show what is in a token.

    TEXT is the token, @FILE for a file that holds it, or - for standard input. With --device-key, the exit status is 1 when the
    signature is not that device's.
    """
    now = time.time()
    wrong = None if device_key is None else _what_is_wrong(text, device_key)
    if as_json:
        print_json(_as_json(text, now, is_checked=device_key is not None, wrong=wrong))
    else:
        verdict = "not checked (see --device-key)" if device_key is None else wrong or "right"
        print_fields({**_as_rows(text, now), "signature": verdict})
    if wrong:
        raise Failure(wrong)


def _what_is_wrong(token: RelayToken, device_key: bytes) -> str | None:
    if token.device_id != key_id(device_key):
        return "the token is another device's"
    return None if token.is_signed_by(device_key) else "the signature is wrong"


def _as_rows(token: RelayToken, now: float) -> dict[str, str]:
    left = token.expires_at - now
    state = f"in {span(left)}" if left > 0 else f"EXPIRED {span(-left)} ago"
    return {
        "relay id": token.relay_id.hex(),
        "allocation id": token.allocation_id.hex(),
        "device id": token.device_id.hex(),
        "peer id": token.peer_id.hex(),
        "expires": f"{when(token.expires_at)} ({state})",
        "bandwidth": BANDWIDTH.format(token.bandwidth_limit) if token.bandwidth_limit else "the tier's own",
        "quota": QUOTA.format(token.quota_bytes) if token.quota_bytes else "the tier's own",
    }


def _as_json(token: RelayToken, now: float, *, is_checked: bool, wrong: str | None) -> dict[str, object]:
    return {
        "relay_id": token.relay_id.hex(),
        "allocation_id": token.allocation_id.hex(),
        "device_id": token.device_id.hex(),
        "peer_id": token.peer_id.hex(),
        "expires_at": token.expires_at,
        "expired": token.expires_at <= now,
        "bandwidth_limit": token.bandwidth_limit,
        "quota_bytes": token.quota_bytes,
        "signature": token.signature.hex(),
        "signature_valid": wrong is None if is_checked else None,
    }
