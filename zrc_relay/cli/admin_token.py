"""``zrc-relay admin-token``: a new bearer token for the admin endpoint (R10.5)."""

from __future__ import annotations

import json

import click

from zrc_relay.cli.console import print_json
from zrc_relay.cli.errors import BadInput
from zrc_relay.control.auth import TOKEN_NAME, digest_of, new_secret
from zrc_relay.control.routes import Scope


@click.command("admin-token")
@click.argument("name")
@click.option("--write", is_flag=True, help="Let it change things, too; without this it may only look.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def admin_token(name: str, *, write: bool, as_json: bool) -> None:
    """Make a bearer token for the admin endpoint.

    NAME says in the audit log whose it is. The token is printed once and kept nowhere: hand it to its owner. The lines below it,
    which hold no secret, belong into the file that admin_tokens_path names; SIGHUP makes a running relay read it.
    """
    if TOKEN_NAME.fullmatch(name) is None:
        msg = "NAME must be 1 to 32 of A-Z, a-z, 0-9, '.', '_' and '-', and begin with a letter or digit"
        raise BadInput(msg)
    scopes = [scope.value for scope in (Scope.READ, Scope.WRITE) if write or scope is Scope.READ]
    secret = new_secret()
    if as_json:
        print_json({"token": secret, "name": name, "scopes": scopes, "sha256": digest_of(secret)})
        return
    click.echo(f"{secret}\n")
    click.echo(f'[[token]]\nname = "{name}"\nscopes = {json.dumps(scopes)}\nsha256 = "{digest_of(secret)}"')
