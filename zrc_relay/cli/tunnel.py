"""``zrc-relay tunnel``: the command around ``Tunnel`` and ``TcpTunnel``."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import click
from nacl.signing import SigningKey
from twisted.internet.defer import CancelledError

from zrc_relay.cli.carrier import Tunnel
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
from zrc_relay.cli.relay_end import RelayLink
from zrc_relay.cli.running import run
from zrc_relay.cli.tcp_carrier import TcpTunnel
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
    help="Bind this port for local programs; 0 takes any free one and prints it. HOST is 127.0.0.1 unless told.",
)
@click.option("--target", metavar="HOST:PORT", type=host_port(), help="Talk to the local program at this address.")
@click.option("--tcp", is_flag=True, help="Carry TCP connections instead of UDP datagrams.")
@click.option("--channel", is_flag=True, help="Carry UDP datagrams beside QUIC; for what is encrypted end to end already.")
@timeout_option
@trust_options
def tunnel(
    *,
    relay: HostPort,
    token: RelayToken,
    key: SigningKey,
    listen: HostPort | None,
    target: HostPort | None,
    tcp: bool,
    channel: bool,
    timeout: float,
    **trust: Any,
) -> None:
    """Carry a local UDP port, or TCP connections, over an allocation.

    So WireGuard, a game or a QUIC program works through a relay as it is. One end says --target, the address of the program that
    answers; the other says --listen, where local programs send to. Each datagram arrives unchanged or not at all, in order; only
    those that are too long for one packet (1202 bytes, or more where the path was found to carry it) may be overtaken by others.
    A listening end serves one program at a time: answers go to the address that was heard last.

    With --tcp, at both ends, each connection that is accepted at --listen becomes a stream of the allocation and a connection to
    --target. It ends and breaks there as it does here, and a reader that pauses pauses its writer.

    With --channel, at both ends, datagrams go beside QUIC: each is encrypted once less, which costs the relay a fraction, and no
    congestion control delays them. It is for programs that encrypt and pace by themselves, as WireGuard and QUIC do. Datagrams
    that do not fit the channel go as without it. A relay that offers no channels ends the tunnel with status 1.

    The tunnel waits for the other end, also when that leaves; when the relay ends the connection it exits with status 1. Ctrl-C
    ends it. SIGUSR1 prints the statistics that are printed at the end.
    """
    try:
        Identity.of(token, key)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if (listen is None) == (target is None):
        msg = "give either --listen or --target"
        raise click.UsageError(msg)
    if tcp and channel:
        msg = "--channel is for datagrams, and --tcp has none"
        raise click.UsageError(msg)
    link = RelayLink(relay, make_trust(**trust), token, key)
    if tcp:
        run(lambda reactor: carry_tcp(reactor, link, listen, target, timeout=timeout, tell=click.echo, warn=complain))
    else:
        open_local = _listening(listen) if listen is not None else _aiming(cast(HostPort, target))
        run(lambda reactor: carry(
            reactor, link, open_local, timeout=timeout, tell=click.echo, warn=complain, by_channel=channel
        ))


async def carry(
    reactor: Any,
    link: RelayLink,
    open_local: OpenLocal,
    *,
    timeout: float,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    by_channel: bool = False,
) -> None:
    """Run a tunnel until it is cancelled, which is a good end; ``Failure`` when it ends otherwise."""
    tunnel = Tunnel(tell=tell, warn=warn, by_channel=by_channel)
    local = open_local(reactor, tunnel.from_local)
    tell(f"local end on UDP {local.address}")
    await _run(reactor, link, tunnel, tunnel.open(reactor, link, local, timeout=timeout), tell)


async def carry_tcp(
    reactor: Any,
    link: RelayLink,
    listen: HostPort | None,
    target: HostPort | None,
    *,
    timeout: float,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """As ``carry``, for TCP connections: accepted at ``listen``, or else made to ``target``."""
    tunnel = TcpTunnel(tell=tell, warn=warn)
    if listen is not None:
        tell(f"local end on TCP {tunnel.listen(reactor, listen)}")
    elif target is not None:
        tunnel.aim(target)
        tell(f"connections will be made to TCP {target}")
    await _run(reactor, link, tunnel, tunnel.open(reactor, link, timeout=timeout), tell)


async def _run(
    reactor: Any, link: RelayLink, tunnel: Tunnel | TcpTunnel, opening: Awaitable[None], tell: Callable[[str], None]
) -> None:
    try:
        await opening
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
