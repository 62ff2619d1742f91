"""``zrc-relay ctl``: see what a running relay does, and change it, by its admin endpoint (R10).

A command is a few lines: its options, the operation of the table of routes that it asks for, and the view that shows the answer.
How the relay is found and asked is in ``ctl_options``, ``ctl_where`` and ``ctl_client``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from zrc_relay.cli import ctl_views as views
from zrc_relay.cli.ctl_client import NoSuchThing
from zrc_relay.cli.ctl_events import Event, Follower, follow
from zrc_relay.cli.ctl_options import Call, asking, connection_options, keep_options
from zrc_relay.cli.ctl_top import Order, TopPlan, top_lines, top_screen
from zrc_relay.cli.errors import complain
from zrc_relay.cli.params import amount, hex_bytes, public_key
from zrc_relay.config_units import Duration
from zrc_relay.control.operations import DEFAULT_PAGE, MAX_PAGE, AllocationState, SortKey
from zrc_relay.control.routes import MAX_OFFSET, EventKind
from zrc_relay.core.token import key_id

Command = TypeVar("Command", bound=Callable[..., Any])

_SORTS: Final = click.Choice([sign + key.value for key in SortKey for sign in ("", "-")])
_SORT_HELP: Final = f"What to sort by, with - the largest first: {', '.join(key.value for key in SortKey)}."
_DEVICE = click.argument("device", type=hex_bytes(32))


def filters(command: Command) -> Command:
    """Adds the options that choose allocations."""
    for option in (
        click.option("--source", metavar="NETWORK", help="Only those with a connection from this address or network."),
        click.option("--pinned/--self-certified", default=None, help="Only those whose device's key is pinned, or is not."),
        click.option("--tier", metavar="NAME", help="Only those in this tier; empty for those without one."),
        click.option("--peer", metavar="ID", help="Only those with this peer id."),
        click.option("--device", metavar="ID", help="Only those of this device id."),
        click.option("--state", type=click.Choice([state.value for state in AllocationState]), help="Only those in this state."),
    ):
        command = option(command)
    return command


def paging(command: Command) -> Command:
    """Adds the options that choose a part of a list."""
    limit = click.option(
        "--limit", type=click.IntRange(1, MAX_PAGE), default=DEFAULT_PAGE, show_default=True, help="How many at most.")
    offset = click.option(
        "--offset", type=click.IntRange(0, MAX_OFFSET), default=0, show_default=True, help="How many to pass over.")
    return limit(offset(command))


@click.group()
@connection_options
@click.pass_context
def ctl(context: click.Context, /, **given: Any) -> None:
    """See what a running relay does, and change it.

    Asks the relay's admin endpoint (docs/admin.md). Which relay is said by --endpoint, by its own configuration (--config), or by
    ZRC_RELAY_CTL_ENDPOINT. Where it wants a token, that comes from --token-file or ZRC_RELAY_CTL_TOKEN. ALLOCATION is an id of 32
    hex digits; where two devices use the same, the relay says the full names to choose from.

    Exit status: 0 done, 1 failed or no answer, 2 wrong input, 3 not allowed, 4 no such thing, 5 conflicts with how things are.
    """
    keep_options(context, given)


@ctl.command("list")
@filters
@click.option(
    "--sort", metavar="KEY", type=_SORTS, default=SortKey.ID.value, show_default=True, help=_SORT_HELP)
@paging
@asking
def list_allocations(call: Call, **which: Any) -> None:
    """List the live allocations."""
    call.show_list(call.ask("listAllocations", **which), views.allocations)


@ctl.command()
@click.argument("allocation")
@asking
def show(call: Call, *, allocation: str) -> None:
    """Show an allocation and its connections."""
    call.show(call.ask("showAllocation", id=allocation), views.allocation)


@ctl.command()
@click.argument("allocation")
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the audit log.")
@asking
def terminate(call: Call, *, allocation: str, reason: str) -> None:
    """End an allocation until its token expires."""
    call.show(call.ask("terminateAllocation", id=allocation, reason=reason), views.termination)


@ctl.command()
@click.argument("allocation")
@asking
def qlog(call: Call, *, allocation: str) -> None:
    """Record the next connection of an allocation, for qvis."""
    call.show(call.ask("traceAllocation", id=allocation), views.qlog)


@ctl.command()
@asking
def stats(call: Call) -> None:
    """Show the relay at a glance."""
    call.show(call.ask("showStats"), views.stats)


@ctl.command()
@click.option("--source", metavar="NETWORK", help="Only those from this address or network.")
@paging
@asking
def connections(call: Call, **which: Any) -> None:
    """List the QUIC connections."""
    call.show_list(call.ask("listConnections", **which), views.connections)


@ctl.command()
@click.option("--access", type=click.Choice(["allow", "block"]), help="Only those.")
@paging
@asking
def networks(call: Call, **which: Any) -> None:
    """List the networks that are allowed and blocked."""
    call.show(call.ask("listNetworks", **which), views.networks)


def entry_options(command: Command) -> Command:
    """Adds what ``block`` and ``allow`` have in common."""
    for option in (
        click.option("--note", metavar="TEXT", help="Why, for whoever reads the list."),
        click.option(
            "--ttl", metavar="DURATION", type=amount(Duration("1s", "366d")), help="For how long [default: without end]."),
        click.argument("network", metavar="CIDR"),
    ):
        command = option(command)
    return command


@ctl.command()
@entry_options
@asking
def block(call: Call, **entry: Any) -> None:
    """Block an address or a network."""
    call.show(call.ask("addNetwork", access="block", **entry), views.network)


@ctl.command()
@entry_options
@asking
def allow(call: Call, **entry: Any) -> None:
    """Allow an address or a network inside one that is blocked."""
    call.show(call.ask("addNetwork", access="allow", **entry), views.network)


@ctl.command()
@click.argument("network", metavar="CIDR")
@asking
def unblock(call: Call, *, network: str) -> None:
    """Take back what "block" or "allow" said of a network."""
    call.show(call.ask("removeNetwork", network=network), views.removed)


@ctl.command()
@paging
@asking
def keys(call: Call, **which: Any) -> None:
    """List the devices that may sign tokens."""
    call.show(call.ask("listKeys", **which), views.keys)


@ctl.command()
@click.argument("key", type=public_key)
@click.option("--tier", metavar="NAME", help="Its tier [default: none, which means the defaults].")
@click.option("--note", metavar="TEXT", help="What to note about it.")
@asking
def pin(call: Call, *, key: bytes, tier: str | None, note: str | None) -> None:
    """Let a device sign tokens.

    KEY is its public key, 64 hex digits, or its key file, of which only the public half is taken.
    """
    call.show(call.ask("pinKey", public_key=key.hex(), tier=tier, note=note), views.key)


@ctl.command()
@_DEVICE
@asking
def unpin(call: Call, *, device: bytes) -> None:
    """Let a device sign no more tokens.

    DEVICE is its id, as "keys" shows it: 64 hex digits, the SHA-256 of its public key. What the device has ends.
    """
    try:
        answer = call.ask("unpinKey", device_id=device.hex())
    except NoSuchThing as error:
        msg = f"{error.message}\nif that is a public key, the id of its device is {key_id(device).hex()}"
        raise NoSuchThing(msg) from error
    call.show(answer, views.key)


@ctl.command()
@asking
def drain(call: Call) -> None:
    """Take nobody new and ask everybody to leave; only a restart takes that back."""
    call.show(call.ask("drain"), views.drain)


@ctl.command()
@asking
def reload(call: Call) -> None:
    """Let the relay read its configuration again, all or nothing."""
    call.show(call.ask("reload"), views.reload)


@ctl.command()
@click.option("--kind", type=click.Choice([kind.value for kind in EventKind]), help="Only events of this kind.")
@click.option("--count", type=click.IntRange(1), help="End after so many [default: never].")
@asking
def events(call: Call, *, kind: str | None, count: int | None) -> None:
    """Show events as they happen, a line each.

    The relay ends the stream once an hour; this goes on with a new one. What happens in the second between is not shown.
    """
    def display(event: Event) -> None:
        click.echo(json.dumps(event.as_dict()) if call.as_json else str(event))

    call.run(lambda reactor, client: follow(reactor, client, Follower(display, complain, count), kind=kind))


@ctl.command()
@filters
@click.option(
    "--sort", metavar="KEY", type=_SORTS, default=f"-{SortKey.BYTES_PER_SECOND.value}", show_default=True, help=_SORT_HELP)
@click.option(
    "--interval", metavar="DURATION", type=amount(Duration("200ms", "1h")), default="1s", show_default=True,
    help="How long until the next look.")
@click.option("--count", type=click.IntRange(1), help="End after so many looks [default: never].")
@asking
def top(call: Call, *, sort: str, interval: float, count: int | None, **which: Any) -> None:
    """Watch the relay and its allocations, on the whole screen.

    Sort by b bandwidth, t total carried, a last activity, e expiry, c creation, s state, n tier, i id; r turns the order round.
    Arrows, PgUp, PgDn and Home move through the list; q ends it. With --json each look is one line of JSON.
    """
    plan = TopPlan(Order.parse(sort), interval, count, which)
    if call.as_json:
        call.run(lambda reactor, client: top_lines(reactor, client, plan, click.echo))
    else:
        call.run(lambda reactor, client: top_screen(reactor, client, plan, str(call.place)))
