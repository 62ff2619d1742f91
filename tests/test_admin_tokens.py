"""Who gets in at the admin endpoint: the file of tokens, and the gate."""

from __future__ import annotations

import hmac
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN, TOKENS, WRITE_TOKEN, write_tokens
from zrc_relay.control import auth
from zrc_relay.control.auth import (
    REFUSALS,
    Gate,
    Origin,
    Principal,
    TokenFileError,
    digest_of,
    find,
    load_tokens,
    may_own,
    parse_tokens,
)
from zrc_relay.control.problems import Problem
from zrc_relay.control.routes import Scope

HERE = Origin("192.0.2.7:4000", 7)
ELSEWHERE = Origin("192.0.2.8:4000", 8)
OWN_UID = 4711


def table(**changes: object) -> str:
    """A [[token]] table with these values, as TOML."""
    values = {"name": '"ops"', "scopes": '["read"]', "sha256": f'"{digest_of("x")}"', **changes}
    return "[[token]]\n" + "".join(f"{name} = {value}\n" for name, value in values.items() if value is not None)


class FileTests(SynchronousTestCase):
    """R10.5: the file holds names, scopes and hashes; everything that is wrong is listed, and the file must not be open."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        write_tokens(self.path)

    def problems(self, text: str) -> list[str]:
        error = self.assertRaises(TokenFileError, parse_tokens, text.encode())
        return list(error.problems)

    def test_who_is_in_it(self) -> None:
        found = {token.principal.name: token.principal.scopes for token in load_tokens(self.path)}
        self.assertEqual(found, {"reader": {Scope.READ}, "writer": {Scope.READ, Scope.WRITE}})

    def test_the_secrets_are_not_in_it(self) -> None:
        for secret, _ in TOKENS.values():
            self.assertNotIn(secret, self.path.read_text())

    def test_an_empty_file_is_no_mistake(self) -> None:
        self.assertEqual(parse_tokens(b""), ())

    def test_everything_that_is_wrong_is_listed(self) -> None:
        text = table(name='"two words"') + table(scopes='["admin"]') + table(sha256='"12"') + table(extra='"x"')
        self.assertEqual([problem[:8] for problem in self.problems(text)], [f"token {number}:" for number in (1, 2, 3, 4)])

    def test_what_is_wrong_says_what_would_be_right(self) -> None:
        for changes, right in (
            ({"name": None}, "name must be"), ({"name": "7"}, "name must be"), ({"scopes": "[]"}, "read and write"),
            ({"scopes": '"read"'}, "read and write"), ({"scopes": "[1]"}, "read and write"), ({"sha256": None}, "64 hex digits"),
            ({"sha256": "7"}, "64 hex digits"), ({"extra": '"x"'}, "unknown key 'extra'"),
        ):
            (problem,) = self.problems(table(**changes))
            self.assertIn(right, problem)

    def test_no_two_with_one_name_or_one_secret(self) -> None:
        self.assertIn("the same name", "".join(self.problems(table() + table(sha256=f'"{digest_of("y")}"'))))
        self.assertIn("the same sha256", "".join(self.problems(table() + table(name='"other"'))))

    def test_what_is_no_such_file_at_all(self) -> None:
        for text in ("[[token", "tokens = 1", "token = 7", "[token]\nname = 'x'", "\udcff", "x = " + "[" * 10_000):
            error = self.assertRaises(TokenFileError, parse_tokens, text.encode(errors="surrogateescape"))
            self.assertTrue(error.problems)

    def test_too_many_are_refused(self) -> None:
        text = "".join(table(name=f'"t{number}"', sha256=f'"{digest_of(str(number))}"') for number in range(auth.MAX_TOKENS + 1))
        self.assertIn("at most 64", self.problems(text)[0])

    def test_a_file_that_others_can_read_or_the_group_can_write_is_refused_with_the_remedy(self) -> None:
        for bit in (0o020, 0o004, 0o002, 0o001):
            self.path.chmod(0o600 | bit)
            error = self.assertRaises(TokenFileError, load_tokens, self.path)
            self.assertEqual(len(error.problems), 1)
            self.assertTrue(str(error).endswith(f"chmod 640 {self.path}"), error)

    def test_the_group_may_read_it(self) -> None:
        self.path.chmod(0o640)
        self.assertEqual(len(load_tokens(self.path)), 2)

    def test_a_file_of_somebody_else_is_not_believed(self) -> None:
        for owner, uid, is_fine in ((1000, 1000, True), (0, 1000, True), (0, 0, True), (1000, 0, True), (1001, 1000, False)):
            self.assertIs(may_own(owner, uid), is_fine, (owner, uid))
        self.patch(auth, "may_own", lambda owner, uid: False)
        self.assertIn("belongs to uid", str(self.assertRaises(TokenFileError, load_tokens, self.path)))

    def test_a_file_that_is_not_there(self) -> None:
        self.path.unlink()
        self.assertIn("No such file", str(self.assertRaises(TokenFileError, load_tokens, self.path)))


class GateTests(SynchronousTestCase):
    """R10.5: a good token gets in, with its scopes; others get 401 or 403, and after some of those 429 for a while."""

    def setUp(self) -> None:
        self.now = 1000.0
        path = Path(self.mktemp())
        write_tokens(path)
        self.gate = self.make(unix_trust=False, tokens=load_tokens(path))

    def make(self, *, unix_trust: bool, tokens: tuple[auth.AdminToken, ...] = ()) -> Gate:
        return Gate(tokens, unix_trust=unix_trust, now=lambda: self.now, uid=OWN_UID)

    def refused(self, origin: Origin = HERE, authorization: bytes | None = None) -> Problem:
        problem: Problem = self.assertRaises(Problem, self.gate.identify, origin, authorization)
        return problem

    def test_each_token_is_known_by_its_secret(self) -> None:
        for name, (secret, _) in TOKENS.items():
            for header in (f"Bearer {secret}", f"bearer {secret}", f" BEARER   {secret} "):
                self.assertEqual(self.gate.identify(HERE, header.encode()).name, name)

    def test_everything_else_is_401_with_a_challenge(self) -> None:
        for number, header in enumerate((
            None, b"", b"Bearer", b"Bearer ", b"Basic " + WRITE_TOKEN.encode(), WRITE_TOKEN.encode(), b"Bearer x",
            b"Bearer " + WRITE_TOKEN.encode() + b"x", b"Bearer " + digest_of(WRITE_TOKEN).encode(), b"Bearer \xff\xfe",
        )):
            problem = self.refused(Origin("x", number), header)
            self.assertEqual((problem.status, list(problem.headers)), (401, ["WWW-Authenticate"]), header)

    def test_every_entry_is_compared_whichever_it_is(self) -> None:
        compared: list[bytes] = []

        def compare(left: bytes, right: bytes) -> bool:
            compared.append(left)
            return left == right

        self.patch(auth, "hmac", mock.Mock(compare_digest=compare))
        for secret, name in ((READ_TOKEN, "reader"), (WRITE_TOKEN, "writer"), ("x", None)):
            compared.clear()
            found = find(self.gate.tokens, secret.encode())
            self.assertEqual((found.name if found else None, len(compared)), (name, len(TOKENS)))

    def test_the_comparison_is_the_one_in_constant_time(self) -> None:
        self.assertIs(vars(auth)["hmac"], hmac)

    def test_a_scope_that_a_token_does_not_have_is_403(self) -> None:
        reader = self.gate.identify(HERE, f"Bearer {READ_TOKEN}".encode())
        self.gate.check(HERE, reader, Scope.READ)
        self.assertEqual(self.assertRaises(Problem, self.gate.check, HERE, reader, Scope.WRITE).status, 403)

    def test_after_some_refusals_it_is_429_for_a_while_for_that_source_alone(self) -> None:
        for _ in range(REFUSALS.events):
            self.assertEqual(self.refused(authorization=b"Bearer x").status, 401)
        problem = self.refused(authorization=b"Bearer x")
        self.assertEqual(problem.status, 429)
        wait = int(problem.headers["Retry-After"])
        self.assertTrue(1 <= wait <= REFUSALS.seconds)
        self.assertEqual(self.refused(ELSEWHERE).status, 401)
        self.now += wait
        self.assertEqual(self.refused(authorization=b"Bearer x").status, 401)

    def test_a_good_token_gets_in_whatever_else_came_from_there(self) -> None:
        for _ in range(REFUSALS.events + 5):
            self.refused(authorization=b"Bearer x")
        self.assertEqual(self.gate.identify(HERE, f"Bearer {READ_TOKEN}".encode()).name, "reader")

    def test_403_counts_too(self) -> None:
        reader = Principal("reader", frozenset({Scope.READ}), auth.TOKEN)
        found = [
            self.assertRaises(Problem, self.gate.check, HERE, reader, Scope.WRITE).status for _ in range(REFUSALS.events + 1)
        ]
        self.assertEqual(found, [403] * REFUSALS.events + [429])


class UnixTrustTests(GateTests):
    """R10.7: where it is so configured, root and the relay's own user need no token on a UNIX socket, and nobody else."""

    def setUp(self) -> None:
        super().setUp()
        self.gate = self.make(unix_trust=True, tokens=tuple(self.gate.tokens))

    def test_root_and_the_relays_own_user_may_do_everything(self) -> None:
        for uid in (0, OWN_UID):
            principal = self.gate.identify(Origin("unix", -1 - uid, uid), None)
            self.assertEqual((principal.name, principal.scopes, principal.how), (f"uid {uid}", set(Scope), "unix"))

    def test_nobody_else_is_trusted(self) -> None:
        for origin in (Origin("unix", -1001, 1000), Origin("unix", -99, 98), HERE):
            self.assertEqual(self.refused(origin).status, 401)

    def test_a_token_that_is_shown_goes_before_who_shows_it(self) -> None:
        root = Origin("unix", -1, 0)
        self.assertEqual(self.gate.identify(root, f"Bearer {READ_TOKEN}".encode()).name, "reader")
        self.assertEqual(self.refused(root, b"Bearer x").status, 401)

    def test_without_that_setting_root_needs_a_token(self) -> None:
        self.gate = self.make(unix_trust=False)
        self.assertEqual(self.refused(Origin("unix", -1, 0)).status, 401)
