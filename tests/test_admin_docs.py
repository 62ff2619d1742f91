"""What docs/admin.md says: its examples are asked for as they stand there, and everything there is is on the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import WRITE_TOKEN, AdminCase
from zrc_relay.control.routes import ROUTES
from zrc_relay.core.token import key_id

PAGE = Path(__file__).resolve().parent.parent / "docs" / "admin.md"
EXAMPLES = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


class PageTests(SynchronousTestCase):
    """R10: nothing is missing on the page."""

    def test_every_route_is_on_it(self) -> None:
        text = PAGE.read_text(encoding="utf-8")
        for route in ROUTES.values():
            self.assertIn(f"| `{route.method} {route.path}` | {route.scope.value} | {route.summary} |", text)

    def test_no_line_is_longer_than_the_others(self) -> None:
        prose = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("|")]
        self.assertLessEqual(max(map(len, prose)), 140)


class ExampleTests(AdminCase):
    """R10: the examples with curl do what is said of them, one after the other."""

    settings: ClassVar[Mapping[str, str]] = {"qlog_dir": "qlogs", "drain_timeout": "1h"}

    async def test_every_example_is_granted(self) -> None:
        newcomer = bytes(SigningKey.generate().verify_key)
        variables = {
            "TOKEN": WRITE_TOKEN, "ADMIN": "", "ALLOCATION": self.setup.token.allocation_id.hex(),
            "PUBLIC_KEY": newcomer.hex(), "DEVICE": key_id(newcomer).hex(),
        }
        self.administration.admin.stream_seconds = 0.05
        await self.setup.pair()
        asked = set()
        for example in EXAMPLES:
            command = re.sub(r"\$([A-Z_]+)", lambda match: variables[match[1]], example)
            method, path, headers, body = understood(shlex.split(command))
            answer = await self.ask(method, path, token=None, headers=headers, body=body)
            self.assertIn(answer.status, (200, 201, 202), f"{example}\n{answer.body.decode()}")
            asked.add((method, re.sub(r"[0-9a-f]{32,}", "*", urlsplit(path).path)))
        known = {(route.method, re.sub(r"\{\w+\}", "*", route.path)) for route in ROUTES.values()}
        self.assertEqual(known - asked, {("GET", "/admin/openapi.json")})


def understood(command: list[str]) -> tuple[str, str, dict[str, str], bytes | None]:
    """Method, path, headers and body of a curl command, of which only what the page uses is known."""
    program, *rest = command
    method, path, body = "GET", "", None
    headers: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        match word:
            case "-X":
                method = rest.pop(0)
            case "-H":
                name, _, value = rest.pop(0).partition(": ")
                headers[name] = value
            case "--json":
                method, body = "POST", rest.pop(0).encode()
                headers["Content-Type"] = "application/json"
            case "-N":
                pass
            case _:
                path = word
    if program != "curl" or not path.startswith("/admin/"):
        msg = f"not understood: {command}"
        raise AssertionError(msg)
    return method, path, headers, body
