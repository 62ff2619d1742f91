"""Who may ask the admin endpoint for what: bearer tokens, and the peers of a UNIX socket (R10.5, R10.7).

Theory of operation
-------------------
Tokens stand in a TOML file with a name, their scopes and the SHA-256 of the secret. A secret is 256 random bits, so its plain
hash gives nothing away, and nobody can guess one; ``zrc-relay admin-token`` makes them. What a request shows is hashed and
compared with **every** entry, each in constant time: neither a match nor its place shows in how long it takes.

On a UNIX socket, where ``admin_unix_trust`` says so, the credentials that the kernel vouches for (SO_PEERCRED, unix(7)) replace
the token for root and for the relay's own user: both could read the relay's memory anyway. A token goes before them.

``Gate`` also counts refusals by source. Past ``REFUSALS`` the answer is 429. A good token is let in whatever else comes from its
source: it cannot be guessed, and a scraper with an old token must not lock the operator out.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Final

from zrc_relay.control.problems import Problem
from zrc_relay.control.routes import Scope
from zrc_relay.core.sources import Rate, SourceLimiter

REFUSALS: Final = Rate(10, 60)
"""Refusals that one source gets an answer to: enough for a person who looks for the right token."""
SECRET_SIZE: Final = 32
"""Bytes of a secret."""
MAX_TOKENS: Final = 64
"""Tokens in a file: each costs a comparison for each request."""
MAX_HEADER: Final = 512
"""Longest Authorization header that is looked at, in bytes."""
ROOT: Final = 0
TOKEN: Final = "token"  # noqa: S105 - the word for how somebody is known
UNIX: Final = "unix"
TOKEN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
"""What a token may be called: short and plain, because logs and lists show it."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CHALLENGE: Final = 'Bearer realm="zrc-relay"'


class TokenFileError(Exception):
    """The file of tokens cannot be used; ``problems`` holds one line for each thing wrong with it."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``how`` says what vouches for that: ``token`` or ``unix``."""

    name: str
    scopes: frozenset[Scope]
    how: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: for people, as a source for counting, and the uid of the peer of a UNIX socket."""

    text: str
    source: int
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class AdminToken:
    """An entry of the file: the principal, and the SHA-256 of the secret."""

    principal: Principal
    digest: bytes


def new_secret() -> str:
    """A secret for a token: 43 characters of base64url that say 256 random bits."""
    return secrets.token_urlsafe(SECRET_SIZE)


def digest_of(secret: str) -> str:
    """What the file holds instead of ``secret``, in hexadecimal."""
    return sha256(secret.encode()).hexdigest()


def find(tokens: Collection[AdminToken], secret: bytes) -> Principal | None:
    """Whose token ``secret`` is; all are looked at, whichever it is."""
    shown = sha256(secret).digest()
    found: Principal | None = None
    for token in tokens:
        if hmac.compare_digest(token.digest, shown):
            found = token.principal
    return found


class Gate:
    """Lets requests in or raises ``Problem``; see the module's docstring. ``now`` gives monotonic seconds."""

    def __init__(
        self, tokens: Collection[AdminToken], *, unix_trust: bool, now: Callable[[], float], uid: int | None = None
    ) -> None:
        self.tokens = tokens
        """May be replaced at any time."""
        self._unix_trust = unix_trust
        self._now = now
        self._trusted = {ROOT, os.geteuid() if uid is None else uid}
        self.refusals = SourceLimiter(REFUSALS)

    def identify(self, origin: Origin, authorization: bytes | None) -> Principal:
        """Who it is; 401 when nobody that is known here, 429 when that was so too often."""
        if authorization is not None:
            scheme, _, secret = authorization[:MAX_HEADER].strip().partition(b" ")
            principal = find(self.tokens, secret.strip()) if scheme.lower() == b"bearer" else None
            if principal is not None:
                return principal
            raise self._refusal(origin, 401, "this is no token that is known here")
        if self._unix_trust and origin.uid in self._trusted:
            return Principal(f"uid {origin.uid}", frozenset(Scope), UNIX)
        raise self._refusal(origin, 401, "a bearer token is needed")

    def knows(self, principal: Principal) -> bool:
        """Whether ``principal`` is still what it was when it came in."""
        return principal.how != TOKEN or any(token.principal == principal for token in self.tokens)

    def check(self, origin: Origin, principal: Principal, scope: Scope) -> None:
        """403 unless ``principal`` has ``scope``, 429 when that was so too often."""
        if scope not in principal.scopes:
            raise self._refusal(origin, 403, f"{principal.name} does not have the scope {scope.value}")

    def _refusal(self, origin: Origin, status: int, detail: str) -> Problem:
        now = self._now()
        if not self.refusals.take(origin.source, now):
            wait = max(1, ceil(self.refusals.wait(origin.source, now)))
            detail = f"too many requests from {origin.text} were refused; try again in {wait} s"
            return Problem(429, detail, headers={"Retry-After": str(wait)})
        headers = {"WWW-Authenticate": _CHALLENGE} if status == 401 else {}
        return Problem(status, detail, headers=headers)


def load_tokens(path: Path) -> tuple[AdminToken, ...]:
    """The tokens in the file at ``path``; ``TokenFileError`` lists everything that is wrong.

    Only root or we may be able to write the file, and only its group to read it besides.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        raise TokenFileError([f"cannot read the admin tokens {path}: {error.strerror or error}"]) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o027:
        raise TokenFileError([f"{path} is open to others (mode {mode:04o}); mend it with: chmod 640 {path}"])
    if not may_own(status.st_uid, os.geteuid()):
        raise TokenFileError([f"{path} belongs to uid {status.st_uid}; only root or the relay's own user may own it"])
    try:
        return parse_tokens(data)
    except TokenFileError as error:
        raise TokenFileError([f"{path}: {problem}" for problem in error.problems]) from error


def may_own(owner: int, uid: int) -> bool:
    """Whether a process of ``uid`` may believe a file of ``owner``: its own or root's; root may be about to become anybody."""
    return uid in (ROOT, owner) or owner == ROOT


def parse_tokens(data: bytes) -> tuple[AdminToken, ...]:
    """The tokens in a file of that content; ``TokenFileError`` lists everything that is wrong."""
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise TokenFileError([f"not TOML: {error}"]) from error
    problems = [f"unknown key {name!r}; only [[token]] tables belong here" for name in document if name != "token"]
    tables = document.get("token", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TokenFileError([*problems, "'token' must be written as [[token]] tables"])
    if len(tables) > MAX_TOKENS:
        problems.append(f"{len(tables)} tokens; at most {MAX_TOKENS} may be there")
    tokens: list[AdminToken] = []
    for number, table in enumerate(tables, start=1):
        wrong = [f"unknown key {name!r}" for name in table if name not in ("name", "scopes", "sha256")]
        wrong += _wrong_token(table)
        if not wrong:
            token = _token(table)
            wrong += _same(token, tokens)
            tokens.append(token)
        problems += [f"token {number}: {problem}" for problem in wrong]
    if problems:
        raise TokenFileError(problems)
    return tuple(tokens)


def _wrong_token(table: dict[str, object]) -> list[str]:
    wrong: list[str] = []
    name, scopes, digest = table.get("name"), table.get("scopes"), table.get("sha256")
    if not isinstance(name, str) or TOKEN_NAME.fullmatch(name) is None:
        wrong.append("name must be 1 to 32 of A-Z, a-z, 0-9, '.', '_' and '-', and begin with a letter or digit")
    known = [scope.value for scope in Scope]
    if not isinstance(scopes, list) or not scopes or any(scope not in known for scope in scopes):
        wrong.append(f"scopes must be a list of {' and '.join(known)}")
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest.lower()) is None:
        wrong.append("sha256 must be 64 hex digits")
    return wrong


def _token(table: dict[str, object]) -> AdminToken:
    scopes = table["scopes"]
    granted = frozenset(Scope(scope) for scope in scopes) if isinstance(scopes, list) else frozenset[Scope]()
    return AdminToken(Principal(str(table["name"]), granted, TOKEN), bytes.fromhex(str(table["sha256"])))


def _same(token: AdminToken, earlier: Collection[AdminToken]) -> list[str]:
    found = []
    for number, other in enumerate(earlier, start=1):
        if other.principal.name == token.principal.name:
            found.append(f"the same name as token {number}")
        if other.digest == token.digest:
            found.append(f"the same sha256 as token {number}")
    return found
