"""What every command of ``zrc-relay ctl`` has in common: the options that say which relay, and ``Call``, which asks it.

The options may stand behind ``ctl`` or behind the command; those behind the command go first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from zrc_relay.cli.console import print_json
from zrc_relay.cli.ctl_client import DEFAULT_TIMEOUT, AdminClient
from zrc_relay.cli.ctl_views import missing
from zrc_relay.cli.ctl_where import find_place, find_token
from zrc_relay.cli.errors import BadInput, complain
from zrc_relay.cli.params import amount
from zrc_relay.cli.running import run
from zrc_relay.config_units import Duration

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

_META: Final = "zrc_relay.cli.ctl"
_OPTIONS: Final = (
    click.option(
        "--endpoint", metavar="WHERE",
        help="Where the relay is administered: unix:PATH, tcp:HOST:PORT, ssl:HOST:PORT, or a URL "
             "[default: ZRC_RELAY_CTL_ENDPOINT]."),
    click.option("--config", "-c", metavar="FILE", type=Path, help="The relay's TOML file, whose admin_endpoint says where."),
    click.option(
        "--token-file", metavar="FILE", type=Path,
        help="File with the bearer token in its first line [default: the token in ZRC_RELAY_CTL_TOKEN]."),
    click.option(
        "--ca", metavar="FILE", type=Path, help="PEM file with the certificate authorities to trust, in place of the system's."),
    click.option("--server-name", metavar="NAME", help="Name that the relay's certificate must have, in place of HOST."),
    click.option(
        "--timeout", metavar="DURATION", type=amount(Duration("100ms", "10min")),
        help=f"How long to wait for an answer [default: {DEFAULT_TIMEOUT:g}s]."),
    click.option("--json", "as_json", is_flag=True, default=None, help="Print the relay's answer as JSON."),
)
_NAMES: Final = ("endpoint", "config", "token_file", "ca", "server_name", "timeout", "as_json")


def connection_options(command: Command) -> Command:
    """Adds the options that say which relay, and how to print."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def keep_options(context: click.Context, given: dict[str, Any]) -> None:
    """Keep what stood behind ``ctl`` for the command that follows."""
    context.meta[_META] = given


def asking(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a function of a ``Call`` a command with ``connection_options``."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        own = {name: given.pop(name) for name in _NAMES}
        earlier = click.get_current_context().meta.get(_META, {})
        merged = {name: earlier.get(name) if value is None else value for name, value in own.items()}
        if own["endpoint"] is None and own["config"] is not None:
            merged["endpoint"] = None
        function(Call(**merged), **given)

    return connection_options(command)


class Call:
    """One run of a command: asks the relay that the options mean, and shows what it answers."""

    def __init__(
        self,
        *,
        endpoint: str | None,
        config: Path | None,
        token_file: Path | None,
        ca: Path | None,
        server_name: str | None,
        timeout: float | None,
        as_json: bool | None,
    ) -> None:
        place = find_place(endpoint, config, os.environ)
        if ca is not None or server_name is not None:
            if not place.is_tls:
                msg = f"--ca and --server-name are for TLS, and {place} has none; use ssl: or https:"
                raise BadInput(msg)
            place = replace(place, ca=ca or place.ca, name=server_name or place.name)
        self.place = place
        self.as_json = bool(as_json)
        self._token = find_token(token_file, os.environ)
        self._timeout = timeout or DEFAULT_TIMEOUT

    def ask(self, name: str, **values: Any) -> Any:
        """What the operation ``name`` answers; see ``AdminClient.ask``."""
        return self.run(lambda _, client: client.ask(name, **values))

    def run(self, main: Callable[[Any, AdminClient], Coroutine[Any, Any, T]]) -> T:
        """Run ``main(reactor, client)`` to its end. The program's reactor runs it, unless the context has brought another way."""
        runner = click.get_current_context().find_root().obj or run
        result: T = runner(lambda reactor: main(reactor, AdminClient(reactor, self.place, self._token, self._timeout)))
        return result

    def show(self, answer: Any, view: Callable[[Any], None]) -> None:
        """Print ``answer``: as JSON where that is wanted, by ``view`` otherwise."""
        if self.as_json:
            print_json(answer)
        else:
            view(answer)

    def show_list(self, page: Any, view: Callable[[Any], None]) -> None:
        """Print ``page``, and on standard error what is not on it because somebody does not answer."""
        self.show(page, view)
        for line in missing(page):
            complain(line)
