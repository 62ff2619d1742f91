"""``zrc-relay tunnel``: the command around ``Tunnel``."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import click
from nacl.signing import SigningKey
from twisted.internet.defer import CancelledError

from zrc_relay.cli.carrier import RelayLink, Tunnel
from zrc_relay.cli.errors import RELAY_TROUBLE, BadInput, complain, trouble
from zrc_relay.cli.local_port import LocalPort
from zrc_relay.cli.params import (
    RELAY_ADDRESS,
    HostPort,
    host_port,
    key_file,
    make_trust,
    timeout_option,
    token_text,
    trust_options,
)
from zrc_relay.cli.running import run
from zrc_relay.client.connection import Identity
from zrc_relay.core.token import RelayToken

OpenLocal = Callable[[Any, Callable[[bytes], None]], LocalPort]
"""Makes the local port, given the reactor and who gets what the local program sends."""


@click.command()
@click.option("--relay", required=True, metavar="HOST[:PORT]", type=RELAY_ADDRESS, help="The relay.")
@click.option("--token", required=True, metavar="TEXT|@FILE", type=token_text, help="The token, the same one at both ends.")
@click.option("--key", required=True, metavar="FILE", type=key_file, help="Key file of this end: the token's device or its peer.")
@click.option(
    "--listen", metavar="[HOST:]PORT", type=host_port(default_host="127.0.0.1", minimum_port=0),
    help="Bind this UDP port for local programs; 0 takes any free one and prints it. HOST is 127.0.0.1 unless told.",
)
@click.option("--target", metavar="HOST:PORT", type=host_port(), help="Talk to the local program at this UDP address.")
@timeout_option
@trust_options
def tunnel(
    *,
    relay: HostPort,
    token: RelayToken,
    key: SigningKey,
    listen: HostPort | None,
    target: HostPort | None,
    timeout: float,
    **trust: Any,
) -> None:
    """Carry a local UDP port over an allocation.

    So WireGuard, a game or a QUIC program works through a relay as it is. One end says --target, the address of the program that
    answers; the other says --listen, where local programs send to. Each datagram arrives unchanged or not at all, in order.

    A listening end serves one program at a time: answers go to the address that was heard last. Datagrams longer than the path
    takes (that is 1202 bytes, and more where the path was found to carry it) are dropped and counted. The tunnel waits for the
    other end, also when that leaves; when the relay ends the connection it exits with status 1. Ctrl-C ends it. SIGUSR1 prints
    the statistics that are printed at the end.
    """
    try:
        Identity.of(token, key)
    except ValueError as error:
        raise BadInput(str(error)) from error
    open_local: OpenLocal
    if listen is not None and target is None:
        open_local = _listening(listen)
    elif target is not None and listen is None:
        open_local = _aiming(target)
    else:
        msg = "give either --listen or --target"
        raise click.UsageError(msg)
    link = RelayLink(relay, make_trust(**trust), token, key)
    run(lambda reactor: carry(reactor, link, open_local, timeout=timeout, tell=click.echo, warn=complain))


async def carry(
    reactor: Any,
    link: RelayLink,
    open_local: OpenLocal,
    *,
    timeout: float,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Run a tunnel until it is cancelled, which is a good end; ``Failure`` when it ends otherwise."""
    tunnel = Tunnel(tell=tell, warn=warn)
    local = open_local(reactor, tunnel.from_local)
    tell(f"local end on UDP {local.address}")
    try:
        await tunnel.open(reactor, link, local, timeout=timeout)
    except RELAY_TROUBLE as error:
        raise trouble(error, link.relay) from error
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(lambda: tell(str(tunnel.statistics))))
    try:
        await tunnel.ended
    except CancelledError:
        tunnel.close()
    except RELAY_TROUBLE as error:
        raise trouble(error, link.relay) from error
    finally:
        tell(str(tunnel.statistics))


def _listening(where: HostPort) -> OpenLocal:
    return lambda reactor, on_payload: LocalPort.listen(reactor, where, on_payload)


def _aiming(target: HostPort) -> OpenLocal:
    return lambda reactor, on_payload: LocalPort.aim(reactor, target, on_payload)
