"""``zrc-relay admin-token``."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import zrc_relay
from zrc_relay.control.auth import find, parse_tokens
from zrc_relay.control.routes import Scope


class AdminTokenTests(SynchronousTestCase):
    """R10.5: a token is shown once; what goes into the file is its hash, and the file is understood."""

    def test_the_lines_below_the_secret_are_a_file_that_lets_its_owner_in(self) -> None:
        result = zrc_relay("admin-token", "ops", "--write")
        self.assertEqual(result.exit_code, 0, result.output)
        secret, _, table = result.stdout.partition("\n\n")
        self.assertNotIn(secret, table)
        (token,) = parse_tokens(table.encode())
        self.assertEqual((token.principal.name, token.principal.scopes), ("ops", {Scope.READ, Scope.WRITE}))
        self.assertEqual(find([token], secret.encode()), token.principal)
        self.assertIsNone(find([token], secret[:-1].encode()))

    def test_unless_asked_for_it_may_only_look(self) -> None:
        _, _, table = zrc_relay("admin-token", "grafana").stdout.partition("\n\n")
        self.assertEqual(parse_tokens(table.encode())[0].principal.scopes, {Scope.READ})

    def test_as_json(self) -> None:
        made = json.loads(zrc_relay("admin-token", "ops", "--json").stdout)
        self.assertEqual(set(made), {"token", "name", "scopes", "sha256"})
        self.assertEqual(len(made["token"]), 43)

    def test_secrets_differ(self) -> None:
        secrets = {json.loads(zrc_relay("admin-token", "ops", "--json").stdout)["token"] for _ in range(5)}
        self.assertEqual(len(secrets), 5)

    def test_a_name_that_no_file_may_have_is_refused(self) -> None:
        for name in ("", "-x", "two words", "x" * 33, 'quo"te', "new\nline"):
            result = zrc_relay("admin-token", "--", name)
            self.assertEqual((result.exit_code, result.stdout), (2, ""), name)
