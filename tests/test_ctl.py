"""``zrc-relay ctl``: what each command asks of a relay, and shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN
from tests.cli_support import zrc_relay
from tests.ctl_support import CtlCase
from tests.real_relay import ended, eventually, exchange
from zrc_relay.cli.ctl import ctl
from zrc_relay.cli.ctl_views import network, networks, removed
from zrc_relay.control.routes import ROUTES
from zrc_relay.core.codes import Role
from zrc_relay.core.token import key_id

OTHER_ID = bytes(15) + b"\x01"


class LookingTests(CtlCase):
    """Issue "run it": list, show, stats, connections, networks, keys, for people and as JSON."""

    settings: ClassVar[Mapping[str, str]] = {"block": "203.0.113.0/24"}

    async def two(self) -> list[str]:
        """Have a pair, and a device on its own; the ids of their allocations."""
        device, peer = await self.setup.pair()
        await exchange(device, peer)
        await self.setup.connect(Role.DEVICE, token=self.setup.another_token(allocation_id=OTHER_ID))
        return [self.setup.token.allocation_id.hex(), OTHER_ID.hex()]

    async def ids(self, *options: object) -> list[str]:
        """The ids that a list shows, in its order."""
        lines = (await self.done("list", *options)).splitlines()
        return [line.split()[0] for line in lines[1:] if len(line.split()[0]) == 32]

    async def test_list_has_a_line_for_each_allocation(self) -> None:
        ids = await self.two()
        text = await self.done("list")
        self.assertEqual([line.split()[:2] for line in text.splitlines()[1:]], sorted([[ids[0], "active"], [ids[1], "waiting"]]))
        page = await self.get("/admin/allocations")
        for item in page["items"]:
            self.assertIn(item["device"]["address"], text)

    async def test_list_filters(self) -> None:
        ids = await self.two()
        for options, expected in (
            (("--state", "active"), ids[:1]), (("--state", "waiting"), ids[1:]),
            (("--source", "127.0.0.1"), sorted(ids)), (("--source", "192.0.2.0/24"), []),
            (("--pinned",), sorted(ids)), (("--self-certified",), []),
            (("--device", self.setup.token.device_id.hex()), sorted(ids)), (("--device", "ab" * 32), []),
            (("--peer", self.setup.token.peer_id.hex()), sorted(ids)), (("--tier", ""), sorted(ids)), (("--tier", "none"), []),
        ):
            self.assertEqual(await self.ids(*options), expected, options)

    async def test_list_sorts_and_shows_a_part(self) -> None:
        ids = sorted(await self.two())
        self.assertEqual(await self.ids("--sort", "-id"), ids[::-1])
        self.assertEqual(await self.ids("--sort", "state"), sorted(ids, key=lambda each: each == OTHER_ID.hex()))
        self.assertEqual(await self.ids("--limit", "1"), ids[:1])
        self.assertEqual(await self.ids("--limit", "1", "--offset", "1"), ids[1:])
        self.assertIn("1 to 1 of 2; --offset 1 goes on", await self.done("list", "--limit", "1"))
        self.assertNotIn(" of ", await self.done("list"))

    async def test_json_is_what_the_relay_answers(self) -> None:
        ids = await self.two()
        for arguments, path in (
            (("list",), "/admin/allocations"), (("show", ids[0]), f"/admin/allocations/{ids[0]}"), (("stats",), "/admin/stats"),
            (("connections",), "/admin/connections"), (("networks",), "/admin/lists"), (("keys",), "/admin/keys"),
        ):
            for words in ((*arguments, "--json"), ("--json", *arguments)):
                self.assertEqual(shape(json.loads(await self.done(*words))), shape(await self.get(path)), words)

    async def test_show_has_every_id_and_each_connection(self) -> None:
        ids = await self.two()
        text = await self.done("show", ids[0])
        answer = await self.get(f"/admin/allocations/{ids[0]}")
        self.assertEqual(len(answer["members"]), 2)
        for each in (ids[0], answer["device_id"], answer["peer_id"], *(member["id"] for member in answer["members"])):
            self.assertIn(each, text)
        self.assertEqual(text, await self.done("show", answer["id"].upper()))

    async def test_stats_and_connections(self) -> None:
        await self.two()
        text = await self.done("stats")
        self.assertIn("2 (1 active, 1 waiting), at most 1000", text)
        self.assertIn("ready, up ", text)
        lines = (await self.done("connections")).splitlines()
        self.assertEqual(len(lines), 4)
        self.assertEqual(len((await self.done("connections", "--source", "192.0.2.1")).splitlines()), 1)

    async def test_networks_and_keys(self) -> None:
        self.assertIn(["203.0.113.0/24", "block", "never", "configuration", "-"], rows(await self.done("networks")))
        self.assertEqual(rows(await self.done("networks", "--access", "allow"))[1:], [])
        keys = rows(await self.done("keys"))
        self.assertIn([self.setup.token.device_id.hex(), "yes", "-", "file"], [line[:4] for line in keys])

    async def test_a_token_to_look_with_is_enough(self) -> None:
        for command in ("list", "stats", "connections", "networks", "keys"):
            await self.done(command, token=READ_TOKEN)


class ChangingTests(CtlCase):
    """Issue "run it": terminate, block, allow, unblock, pin, unpin, drain, reload, qlog do what they say to the relay."""

    settings: ClassVar[Mapping[str, str]] = {"qlog_dir": "qlogs", "drain_timeout": "1h"}

    async def test_terminate(self) -> None:
        device, _ = await self.setup.pair()
        name = self.setup.token.allocation_id.hex()
        text = await self.done("terminate", name, "--reason", "it floods its peer & more")
        self.assertIn("it floods its peer & more", text)
        self.assertIn("2 closed", text)
        await ended(device)
        self.assertEqual((await self.get("/admin/allocations"))["total"], 0)
        record = next(each for each in self.audited() if each["action"] == "terminateAllocation")
        self.assertEqual((record["reason"], record["who"]), ("it floods its peer & more", "writer"))

    async def test_terminate_wants_a_reason(self) -> None:
        result = await self.ctl("terminate", "ab" * 16)
        self.assertEqual(result.exit_code, 2)
        self.assertIn("--reason", result.stderr)

    async def test_qlog(self) -> None:
        await self.setup.pair()
        self.assertIn("qlogs", await self.done("qlog", self.setup.token.allocation_id.hex()))

    async def test_block_allow_and_unblock(self) -> None:
        self.assertIn("192.0.2.0/24", await self.done("block", "192.0.2.7/24", "--ttl", "1h", "--note", "it floods us"))
        await self.done("allow", "192.0.2.9")
        items = {each["network"]: each for each in (await self.get("/admin/lists"))["items"]}
        blocked, allowed = items["192.0.2.0/24"], items["192.0.2.9/32"]
        self.assertEqual((blocked["access"], allowed["access"], allowed["until"]), ("block", "allow", None))
        self.assertIn("it floods us", blocked["note"])
        self.assertIsNotNone(blocked["until"])
        self.assertEqual(await self.done("unblock", "192.0.2.0/24"), "192.0.2.0/24 is no longer blocked\n")
        self.assertEqual(await self.done("unblock", "192.0.2.9"), "192.0.2.9/32 is no longer allowed\n")
        self.assertEqual((await self.get("/admin/lists"))["total"], 0)

    async def test_pin_and_unpin(self) -> None:
        public = bytes(SigningKey.generate().verify_key)
        text = await self.done("pin", public.hex(), "--tier", "free", "--note", "the cellar")
        self.assertIn(key_id(public).hex(), text)
        keys = {each["device_id"]: each for each in (await self.get("/admin/keys"))["items"]}
        pinned = keys[key_id(public).hex()]
        self.assertEqual((pinned["tier"], pinned["note"], pinned["pinned"]), ("free", "the cellar", True))
        self.assertIn("0 allocations", await self.done("unpin", key_id(public).hex()))
        keys = {each["device_id"]: each for each in (await self.get("/admin/keys"))["items"]}
        self.assertNotEqual(keys.get(key_id(public).hex(), {}).get("pinned"), True)

    async def test_pin_takes_the_public_half_of_a_key_file(self) -> None:
        answer = json.loads(await self.done("pin", self.setup.made.peer_key, "--json"))
        self.assertEqual(answer["key"]["public_key"], bytes(self.setup.keys[Role.PEER].verify_key).hex())

    async def test_unpin_by_the_public_key_names_the_id_to_take(self) -> None:
        public = bytes(SigningKey.generate().verify_key)
        result = await self.ctl("unpin", public.hex())
        self.assertEqual(result.exit_code, 4)
        self.assertIn(key_id(public).hex(), result.stderr)

    async def test_drain(self) -> None:
        await self.setup.pair()
        text = await self.done("drain")
        self.assertIn("1 allocations, 2 connections", text)
        self.assertEqual((await self.get("/admin/stats"))["state"], "draining")

    async def test_reload_says_what_has_changed(self) -> None:
        config = self.setup.made.config
        config.write_text("default_quota = '5 MB'\nlisten_port = 9\n" + config.read_text().replace("listen_port", "#"))
        text = await self.done("reload")
        self.assertIn("default_quota", text)
        self.assertRegex(text, "need a restart +listen_port")

    async def test_every_operation_has_a_command(self) -> None:
        await self.setup.pair()
        name = self.setup.token.allocation_id.hex()
        public = bytes(SigningKey.generate().verify_key)
        for words in (
            ("list",), ("show", name), ("qlog", name), ("terminate", name, "--reason", "x"), ("stats",), ("connections",),
            ("networks",), ("block", "192.0.2.1"), ("unblock", "192.0.2.1"), ("allow", "192.0.2.1"), ("keys",),
            ("pin", public.hex()), ("unpin", key_id(public).hex()), ("reload",), ("top", "--json", "--count", "1"),
        ):
            json.loads(await self.done(*words, "--json"))
        waiting = Deferred.fromCoroutine(self.ctl("events", "--json", "--count", "1"))
        await eventually(lambda: len(self.service.hub), "a listener")
        self.service.hub.event("allocation.created", allocation="x")
        self.assertEqual(json.loads((await waiting).stdout)["event"], "allocation.created")
        json.loads(await self.done("drain", "--json"))
        asked = {record["action"] for record in self.audited()}
        self.assertEqual(set(ROUTES) - asked, {"showDocument"})


class RefusalTests(CtlCase):
    """Issue "run it": what the relay refuses is told with what to do about it, and a status of its kind."""

    async def refused(self, *arguments: object, status: int, **more: Any) -> str:
        result = await self.ctl(*arguments, **more)
        self.assertEqual((result.exit_code, result.stdout), (status, ""), result.stderr)
        self.assertTrue(all(line.startswith("zrc-relay: ") for line in result.stderr.splitlines()))
        return result.stderr

    async def test_no_token(self) -> None:
        text = await self.refused("stats", status=3, token=None)
        self.assertIn("status 401", text)
        self.assertIn("--token-file", text)
        self.assertIn("admin-token", text)

    async def test_a_token_that_is_not_known(self) -> None:
        text = await self.refused("stats", status=3, token="wrong")  # noqa: S106 - it is
        self.assertIn("admin_tokens_path", text)

    async def test_a_token_that_may_only_look(self) -> None:
        text = await self.refused("drain", status=3, token=READ_TOKEN)
        self.assertIn("status 403", text)
        self.assertIn("--write", text)
        self.assertEqual((await self.get("/admin/stats"))["state"], "ready")

    async def test_too_many_refusals(self) -> None:
        for _ in range(12):
            await self.ctl("stats", token=None)
        result = await self.ctl("stats", token=None)
        self.assertEqual(result.exit_code, 1)
        self.assertIn("status 429", result.stderr)
        self.assertIn("try again in", result.stderr)

    async def test_what_is_not_there(self) -> None:
        self.assertIn("ab" * 16, await self.refused("show", "ab" * 16, status=4))

    async def test_an_id_of_two_devices_shows_the_full_names(self) -> None:
        second = SigningKey.generate()
        await self.setup.connect(Role.DEVICE)
        await self.done("pin", bytes(second.verify_key).hex())
        token = replace(self.setup.token, device_id=key_id(bytes(second.verify_key))).sign(second)
        self.setup.keys[Role.DEVICE] = second
        await self.setup.connect(Role.DEVICE, token=token)
        name = self.setup.token.allocation_id.hex()
        text = await self.refused("show", name, status=5)
        full = [f"{device.hex()}:{name}" for device in (self.setup.token.device_id, token.device_id)]
        for each in full:
            self.assertIn(f"zrc-relay:   {each}\n", text)
            self.assertIn(each[:64], await self.done("show", each))
        self.assertEqual(sorted(line.split()[0] for line in (await self.done("list")).splitlines()[1:]), sorted(full))

    async def test_all_problems_of_a_configuration_are_told_and_reload_gets_there_all_the_same(self) -> None:
        config = self.setup.made.config
        config.write_text("default_quota = 'lots'\nno_such_setting = 1\n" + config.read_text())
        port = self.where.rpartition(":")[2]
        config.write_text(config.read_text().replace("tcp:0:", f"tcp:{port}:"))
        result = await self.ctl("reload", "--config", config)
        self.assertEqual(result.exit_code, 5, result.stderr)
        self.assertIn("default_quota", result.stderr)
        self.assertIn("no_such_setting", result.stderr)

    async def test_values_that_are_none(self) -> None:
        self.assertIn("network", await self.refused("block", "everybody", status=2))
        self.assertIn("id: ", await self.refused("show", "ab", status=2))
        self.assertIn("status 404", await self.refused("show", "../stats", status=4))

    async def test_notes_are_shown_as_they_are(self) -> None:
        await self.done("block", "192.0.2.1", "--note", "caf\u00e9 [red]\\[/red]")
        self.assertIn("caf\u00e9 [red]\\[/red]", await self.done("networks"))


class ViewTests(SynchronousTestCase):
    """Issue "run it": texts of others are shown, and do nothing else."""

    def test_what_a_relay_says_cannot_command_a_terminal(self) -> None:
        entry = {"network": "192.0.2.1/32", "access": "block", "until": None, "note": "\x1b[2Jgone\nx", "configured": False}
        with redirect_stdout(StringIO()) as output:
            networks({"items": [entry], "total": 1, "offset": 0})
            network(entry)
        self.assertNotIn("\x1b", output.getvalue())
        self.assertEqual(output.getvalue().count("?[2Jgone?x"), 2)

    def test_what_a_restart_takes_back_is_said(self) -> None:
        entry = {"network": "192.0.2.1/32", "access": "block", "until": None, "note": "", "configured": False}
        for kept, after, gone in (
            (True, "after a restart +the same", "is no longer blocked\n"),
            (False, "after a restart +forgotten: .* cannot be written", "after a restart it may be so again"),
        ):
            with redirect_stdout(StringIO()) as output:
                network({**entry, "kept": kept})
                removed({**entry, "kept": kept})
            self.assertRegex(output.getvalue(), after)
            self.assertIn(gone, output.getvalue())


class HelpTests(SynchronousTestCase):
    """Issue "run it": the page of help, and docs/admin.md, know every command and every status."""

    def test_a_token_on_the_command_line_is_not_understood(self) -> None:
        for words in (("ctl", "--token", "x", "stats"), ("ctl", "stats", "--token", "x")):
            result = zrc_relay(*words)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("--token", result.stderr)

    def test_the_page_names_every_command_and_status(self) -> None:
        page = (Path(__file__).resolve().parent.parent / "docs" / "ctl.md").read_text(encoding="utf-8")
        for name in ctl.commands:
            self.assertIn(f"| `{name}", page)
        for status in (0, 1, 2, 3, 4, 5, 130):
            self.assertIn(f"| {status} |", page)


def shape(value: Any) -> Any:
    """What does not change from one moment to the next: names, and texts."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items() if not name.endswith(("_at", "_seconds", "time", "_second"))}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return value if isinstance(value, str) else type(value).__name__


def rows(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]
