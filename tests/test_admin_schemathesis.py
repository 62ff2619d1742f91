"""Schemathesis, which was not written here, against the admin endpoint and its OpenAPI document."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import ClassVar

from twisted.internet.utils import getProcessOutputAndValue

from tests.admin_support import WRITE_TOKEN, AdminCase, reactor
from zrc_relay.control.events import MAX_SECONDS
from zrc_relay.core.sources import SourceLimiter

EXAMPLES = 25
"""Requests of each kind for each operation."""
STREAM_SECONDS = 0.1
"""How long a stream of events lasts here; Schemathesis waits for its end."""


class SchemathesisTests(AdminCase):
    """Issue "run it", must show: Schemathesis against ``openapi.json`` finds nothing."""

    timeout = 300
    settings: ClassVar[Mapping[str, str]] = {"qlog_dir": "qlogs", "state_dir": "state", "drain_timeout": "1h"}

    async def test_it_finds_nothing(self) -> None:
        self.assertGreater(MAX_SECONDS, 1)
        self.administration.admin.stream_seconds = STREAM_SECONDS
        self.administration.gate.refusals = SourceLimiter(None)  # it tries to get in without a token, many times
        await self.setup.pair()
        port = self.administration.site.port.getHost().port
        arguments = [
            "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/admin/openapi.json",
            "--header", f"Authorization: Bearer {WRITE_TOKEN}", "--checks", "all", "--max-examples", str(EXAMPLES),
            "--seed", "1", "--no-color", "--request-timeout", "10",
        ]
        environment = {**os.environ, "HOME": self.mktemp(), "SCHEMATHESIS_HOOKS": ""}
        out, err, status = await getProcessOutputAndValue(sys.executable, arguments, environment, reactor=reactor)
        self.assertEqual(status, 0, (out + err).decode())
