"""The command ``zrc-relay``: a group of commands, each in a module of its own."""

from __future__ import annotations

import click

from zrc_relay import __version__
from zrc_relay.cli.admin_token import admin_token
from zrc_relay.cli.bench import bench
from zrc_relay.cli.config import check_config
from zrc_relay.cli.ctl import ctl
from zrc_relay.cli.demo import demo
from zrc_relay.cli.dev_setup import dev_setup
from zrc_relay.cli.errors import Program
from zrc_relay.cli.keys import keygen
from zrc_relay.cli.ping import ping
from zrc_relay.cli.tokens import token
from zrc_relay.cli.tunnel import tunnel
from zrc_relay.form import form


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zrc-relay", message=f"%(prog)s, version %(version)s ({form()})")
def main() -> None:
    """A relay for devices that cannot reach each other, and what goes with it.

    New here? "zrc-relay demo" shows it at work. "zrc-relay dev-setup DIR" makes everything for a relay of your own, which
    "twistd -n zrc-relay --config DIR/relay.toml" then runs.
    """


for _command in (demo, dev_setup, check_config, keygen, token, tunnel, ping, bench, admin_token, ctl):
    main.add_command(_command)
