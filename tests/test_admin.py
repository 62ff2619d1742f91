"""The admin endpoint over HTTP: who gets in, what is a wrong request, what answers look like, and that it does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from klein import Klein
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN, WRITE_TOKEN, AdminCase, Answer, Exchange, exchange, request_bytes, write_tokens
from tests.real_relay import ended, eventually, eventually_answers, reactor
from tests.real_relay import exchange as exchange_datagrams
from zrc_relay.client import errors
from zrc_relay.client.errors import DeviceUnknown, Draining, Terminated
from zrc_relay.control.admin import GONE, Admin
from zrc_relay.control.auth import REFUSALS
from zrc_relay.control.incoming import MAX_BODY
from zrc_relay.control.openapi import document, statuses
from zrc_relay.control.routes import NETWORK_PATTERN, ROUTES, Scope
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import Role
from zrc_relay.core.token import key_id

NOBODY = "00" * 16
A_NETWORK = {"network": "203.0.113.0/24", "access": "block"}


class AuthorisationTests(AdminCase):
    """R10.5: nothing without a token, nothing beyond its scopes, and not too many tries."""

    async def test_every_route_is_401_without_a_token_and_with_a_wrong_one(self) -> None:
        for route in ROUTES.values():
            path = route.path.replace("{id}", NOBODY).replace("{device_id}", "00" * 32)
            for token in (None, "x"):
                self.administration.gate.refusals = type(self.administration.gate.refusals)(None)
                answer = await self.ask(route.method, path, token=token)
                self.assertEqual((answer.status, answer.headers["www-authenticate"]), (401, 'Bearer realm="zrc-relay"'), path)

    async def test_every_route_that_changes_something_is_403_for_a_reader(self) -> None:
        changing = [route for route in ROUTES.values() if route.scope is Scope.WRITE]
        self.assertEqual({route.method for route in changing}, {"POST", "DELETE"})
        self.assertEqual({route.method for route in ROUTES.values() if route.scope is Scope.READ}, {"GET"})
        for route in changing:
            path = route.path.replace("{id}", NOBODY).replace("{device_id}", "00" * 32)
            answer = await self.ask(route.method, path, token=READ_TOKEN)
            self.assertEqual((answer.status, answer.json["status"]), (403, 403), path)
        self.assertEqual((await self.get("/admin/stats"))["state"], "ready")

    async def test_after_some_refusals_it_is_429_and_a_good_token_gets_in_all_the_same(self) -> None:
        for _ in range(REFUSALS.events):
            self.assertEqual((await self.ask("GET", "/admin/stats", token="x")).status, 401)  # noqa: S106 - a wrong one
        answer = await self.ask("GET", "/admin/stats", token=None)
        self.assertEqual(answer.status, 429)
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.assertEqual((await self.ask("GET", "/admin/stats", token=READ_TOKEN)).status, 200)

    async def test_strangers_do_not_learn_what_there_is(self) -> None:
        for method, path in (("GET", "/admin/nothing"), ("PUT", "/admin/stats"), ("GET", "/")):
            self.assertEqual((await self.ask(method, path, token=None)).status, 401)

    async def test_other_tokens_are_in_force_after_a_reload(self) -> None:
        write_tokens(self.tokens, {"new": ("n" * 43, ["read", "write"])})
        self.assertEqual((await self.ask("POST", "/admin/reload")).status, 200)
        self.assertEqual((await self.ask("GET", "/admin/stats")).status, 401)
        self.assertEqual((await self.ask("GET", "/admin/stats", token="n" * 43)).status, 200)

    async def test_a_file_of_tokens_that_is_wrong_changes_nothing(self) -> None:
        self.tokens.write_text("[[token]]\nname = 7\n")
        answer = await self.ask("POST", "/admin/reload")
        self.assertEqual(answer.status, 409)
        self.assertTrue(any("tokens.toml" in problem for problem in answer.json["problems"]), answer.json)
        self.assertEqual((await self.ask("GET", "/admin/stats", token=READ_TOKEN)).status, 200)


class RequestTests(AdminCase):
    """Issue "run it": errors are application/problem+json, with the status that belongs to them."""

    def check(self, answer: Answer, status: int, what: str = "") -> None:
        self.assertEqual((answer.status, answer.headers["content-type"]), (status, "application/problem+json"), answer.body)
        problem = answer.json
        self.assertEqual((problem["type"], problem["status"]), ("about:blank", status))
        self.assertTrue(problem["title"])
        self.assertTrue(problem["detail"])
        self.assertIn(what, answer.body.decode())

    async def test_what_is_not_there_is_404(self) -> None:
        for path in ("/", "/admin", "/admin/allocations/", "/admin/stats/x", f"/admin/allocations/{NOBODY}/x"):
            self.check(await self.ask("GET", path), 404)
        self.check(await self.ask("GET", f"/admin/allocations/{NOBODY}"), 404, NOBODY)
        self.check(await self.ask("DELETE", "/admin/keys/" + "00" * 32), 404)
        self.check(await self.ask("DELETE", "/admin/lists", query={"network": "203.0.113.7"}), 404)

    async def test_a_method_that_a_path_does_not_know_is_405(self) -> None:
        for method, path, allowed in (
            ("POST", "/admin/stats", "GET, HEAD, OPTIONS"), ("GET", "/admin/drain", "OPTIONS, POST"),
            ("PATCH", "/admin/lists", "DELETE, GET, HEAD, OPTIONS, POST"), ("TRACE", "/admin/keys", "GET, HEAD, OPTIONS, POST"),
        ):
            answer = await self.ask(method, path)
            self.check(answer, 405)
            self.assertEqual(answer.headers["allow"], allowed)

    async def test_options_says_what_a_path_is_good_for(self) -> None:
        answer = await self.ask("OPTIONS", "/admin/keys", token=None)
        self.assertEqual((answer.status, answer.headers["allow"], answer.body), (204, "GET, HEAD, OPTIONS, POST", b""))

    async def test_head_is_get_without_the_body(self) -> None:
        for path in ("/admin/openapi.json", "/admin/events"):
            answer = await self.ask("HEAD", path)
            self.assertEqual((answer.status, answer.body), (200, b""))
        got = await self.ask("GET", "/admin/openapi.json")
        head = await self.ask("HEAD", "/admin/openapi.json")
        self.assertEqual(head.headers["content-length"], got.headers["content-length"])
        self.assertEqual(len(self.service.hub), 0)

    async def test_parameters_that_are_not_as_the_document_says_are_422_and_all_are_listed(self) -> None:
        for query in (
            {"limit": "0"}, {"limit": "1001"}, {"limit": "ten"}, {"limit": ""}, {"limit": "1.5"}, {"limit": "9" * 400},
            {"offset": "-1"}, {"state": "ended"}, {"sort": "colour"}, {"pinned": "maybe"}, {"device": "12"},
            {"source": "192.0.2.0/33"}, {"source": "localhost"}, {"colour": "red"},
        ):
            self.check(await self.ask("GET", "/admin/allocations", query=query), 422, f"{next(iter(query))}: ")
        answer = await self.ask("GET", "/admin/allocations", query={"limit": "0", "sort": "x", "colour": "red"})
        self.assertEqual(len(answer.json["problems"]), 3)
        self.check(await self.ask("GET", "/admin/allocations?limit=5&limit=6"), 422, "given twice")

    async def test_a_name_that_cannot_be_one_is_422(self) -> None:
        for name in ("12", "zz" * 16, "00" * 32, f"12:{NOBODY}", f"{NOBODY}%0a"):
            self.check(await self.ask("GET", f"/admin/allocations/{name}"), 422, "id: ")

    async def test_an_end_needs_a_reason(self) -> None:
        path = f"/admin/allocations/{NOBODY}"
        self.check(await self.ask("DELETE", path), 422, "reason: is required")
        for reason in ("", "x" * 201, "two\nlines", "\x1b[31m"):
            self.check(await self.ask("DELETE", path, query={"reason": reason}), 422, "reason: ")

    async def test_a_query_that_cannot_be_read_is_400(self) -> None:
        for query in ("limit=%ff", "&".join(f"a{number}=1" for number in range(100))):
            self.check(await self.ask("GET", f"/admin/allocations?{query}"), 400)

    async def test_a_path_that_is_no_text_is_400(self) -> None:
        self.check(await self.ask("GET", "/admin/%ff"), 400)

    async def test_a_host_header_does_not_matter(self) -> None:
        for host in ("x" * 300, "..", "a..b", "\u00fc", "[::1", ""):
            answer = await self.ask("GET", "/admin/stats", headers={"Host": host})
            self.assertEqual(answer.status, 200, host)

    async def test_a_body_that_is_no_json_is_415_or_400(self) -> None:
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            self.check(await self.ask("POST", "/admin/lists", body=b"network=192.0.2.1", headers=headers), 415)
        as_json = {"Content-Type": "application/json; charset=utf-8"}
        for body in (b"", b"{", b"\xff", b'{"network": NaN}', b'{"a": 1, "a": 2}', b"[" * 5000, b"9" * 5000):
            self.check(await self.ask("POST", "/admin/lists", body=body, headers=as_json), 400)
        body = json.dumps(A_NETWORK).encode()
        self.assertEqual((await self.ask("POST", "/admin/lists", body=body, headers=as_json)).status, 201)

    async def test_a_body_that_is_not_as_the_document_says_is_422(self) -> None:
        for changes, what in (
            ({"network": 7}, "body.network: must be string"), ({"network": "everybody"}, "body.network"),
            ({"access": "deny"}, "body.access"), ({"ttl": 0}, "body.ttl"), ({"ttl": True}, "body.ttl"),
            ({"ttl": 1e12}, "body.ttl"), ({"note": "x" * 61}, "body.note"),
            ({"note": "\ud800"}, "body.note"), ({"colour": "red"}, "body.colour: is unknown"),
        ):
            self.check(await self.ask("POST", "/admin/lists", value={**A_NETWORK, **changes}), 422, what)
        as_json = {"Content-Type": "application/json"}
        for body in (b"[]", b'"x"', b"7", b"null", b"{}"):
            self.check(await self.ask("POST", "/admin/lists", body=body, headers=as_json), 422)
        self.assertTrue(self.service.lists.is_empty)

    async def test_a_body_that_is_too_long_is_413(self) -> None:
        for size in (MAX_BODY + 1, 200_000):
            answer = await self.ask("POST", "/admin/lists", value={**A_NETWORK, "note": "x" * size})
            self.assertEqual((answer.status, answer.json["status"]), (413, 413))

    async def test_chunks_are_a_body_too(self) -> None:
        data = json.dumps(A_NETWORK).encode()
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:10], data[10:])) + b"0\r\n\r\n"
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        self.assertEqual((await self.ask("POST", "/admin/lists", body=chunks, headers=headers)).status, 201)

    async def test_several_requests_on_one_connection(self) -> None:
        first = request_bytes("GET", "/admin/stats", token=READ_TOKEN, headers={"Connection": "keep-alive"})
        answer = await exchange(self.client, first + request_bytes("GET", "/admin/keys", token=READ_TOKEN))
        self.assertIn("allocations", answer.json)
        self.assertEqual([record["action"] for record in self.audited()], ["showStats", "listKeys"])

    async def test_answers_are_not_to_be_kept_or_guessed_at(self) -> None:
        answer = await self.ask("GET", "/admin/stats")
        self.assertEqual((answer.headers["cache-control"], answer.headers["x-content-type-options"]), ("no-store", "nosniff"))
        self.assertEqual((answer.headers["content-type"], answer.headers["server"]), ("application/json", "zrc-relay"))

    async def test_what_a_client_asked_for_that_hangs_up_is_done_to_its_end(self) -> None:
        asked: Deferred[None] = Deferred()
        may_go_on: Deferred[None] = Deferred()
        drain = self.administration.operations.drain

        async def slowly() -> Any:
            asked.callback(None)
            await may_go_on
            return await drain()

        self.patch(self.administration.operations, "drain", slowly)
        client = Exchange(request_bytes("POST", "/admin/drain", token=WRITE_TOKEN, value={}))
        await connectProtocol(self.client, client)
        await asked
        client.close()
        await client.done
        await deferLater(reactor, 0)
        may_go_on.callback(None)
        await eventually(self.audited, "a line in the audit log")
        (record,) = self.audited()
        self.assertEqual((record["action"], record["outcome"], record["detail"]), ("drain", "done", GONE))

    async def test_an_error_of_our_own_is_500_and_says_nothing_of_itself(self) -> None:
        self.patch(type(self.administration.operations), "stats", None)
        answer = await self.ask("GET", "/admin/stats")
        self.check(answer, 500)
        self.assertNotIn("NoneType", answer.body.decode())
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual([(record["status"], record["outcome"]) for record in self.audited()], [(500, "failed")])


class DocumentTests(SynchronousTestCase):
    """R10, issue "run it": the OpenAPI document has every route, and says of it what is so."""

    def test_every_route_has_a_handler_and_every_handler_a_route(self) -> None:
        app: Klein = Admin.app
        handled = {
            (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule)): rule.endpoint
            for rule in app.url_map.iter_rules() for method in (rule.methods or set()) - {"HEAD"}
        }
        self.assertEqual(handled, {(route.method, route.path): route.name for route in ROUTES.values()})

    def test_every_route_is_in_the_document_with_its_scope_and_its_refusals(self) -> None:
        paths = document()["paths"]
        self.assertEqual(sum(len(path) for path in paths.values()), len(ROUTES))
        for route in ROUTES.values():
            operation = paths[route.path][route.method.lower()]
            self.assertEqual((operation["operationId"], operation["x-scope"]), (route.name, route.scope.value))
            self.assertEqual(set(operation["responses"]), {str(route.status), "default", *map(str, statuses(route))})

    def test_everything_that_is_referred_to_is_there(self) -> None:
        text = json.dumps(document())
        for reference in set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', text)):
            self.assertIn(reference[1], document()["components"][reference[0]])
        for route in ROUTES.values():
            for link in route.links:
                self.assertIn(link.parameter, [parameter.name for parameter in ROUTES[link.route].parameters])

    def test_everything_has_a_description(self) -> None:
        for name, schema in document()["components"]["schemas"].items():
            self.assertTrue(schema["description"], name)
            for key, value in schema["properties"].items():
                self.assertTrue(value.get("description") or name == "Problem", f"{name}.{key}")

    def test_networks_are_what_the_pattern_says(self) -> None:
        pattern = re.compile(NETWORK_PATTERN)
        for text in (
            "0.0.0.0/0", "192.0.2.1", "192.0.2.255/32", "::", "::/0", "::1", "2001:db8::/32", "1:2:3:4:5:6:7:8", "1::8/128",
            "1:2:3:4:5:6:7::",
        ):
            self.assertTrue(pattern.fullmatch(text), text)
            Network.parse(text)
        for text in (
            "", "192.0.2", "256.0.0.1", "1.2.3.4/33", "01.2.3.4", "1:2:3:4:5:6:7", "::1::", "1:2:3:4:5:6:7:8:9", "::/129",
            "fe80::1%eth0",
        ):
            self.assertFalse(pattern.fullmatch(text), text)
            self.assertRaises(ValueError, Network.parse, text)


class ActionTests(AdminCase):
    """R10: every action over HTTP does to real sessions what it says."""

    settings: ClassVar[Mapping[str, str]] = {
        "state_dir": "state", "qlog_dir": "qlogs", "drain_timeout": "1h", "connection_rate": "off", "allocation_rate": "off",
    }

    async def test_list_show_and_terminate(self) -> None:
        device, peer = await self.setup.pair()
        await exchange_datagrams(device, peer)
        page = await self.get("/admin/allocations", state="active", sort="-bytes_transferred")
        (item,) = page["items"]
        self.assertEqual((page["total"], item["allocation_id"]), (1, self.setup.token.allocation_id.hex()))
        for name in (item["id"], item["allocation_id"], item["id"].upper(), item["id"].replace(":", "%3A")):
            self.assertEqual((await self.get(f"/admin/allocations/{name}"))["id"], item["id"])
        answer = await self.ask("DELETE", f"/admin/allocations/{item['id']}", query={"reason": "it floods"})
        self.assertEqual((answer.status, answer.json["connections"], answer.json["reason"]), (200, 2, "it floods"))
        for client in (device, peer):
            await ended(client)
            self.assertIsInstance(client.relay.error, Terminated)
        with self.assertRaises(Terminated):
            await self.setup.connect(Role.DEVICE)
        self.assertEqual((await self.ask("DELETE", f"/admin/allocations/{item['id']}", query={"reason": "again"})).status, 404)

    async def test_sorted_both_ways(self) -> None:
        for number in (1, 2, 3):
            await self.setup.connect(Role.DEVICE, token=self.setup.another_token(allocation_id=bytes((number,)) * 16))
        for sort, expected in (("id", ["01", "02", "03"]), ("-id", ["03", "02", "01"])):
            found = [item["allocation_id"][:2] for item in (await self.get("/admin/allocations", sort=sort))["items"]]
            self.assertEqual(found, expected)

    async def test_stats_and_connections(self) -> None:
        device, _ = await self.setup.pair()
        stats = await self.get("/admin/stats")
        self.assertEqual((stats["allocations"]["active"], stats["connections"]["current"]), (1, 2))
        connections = await self.get("/admin/connections", source="127.0.0.0/8")
        self.assertEqual({item["role"] for item in connections["items"]}, {"device", "peer"})
        self.assertIn(str(device.relay.observed_addr), [item["address"] for item in connections["items"]])
        self.assertEqual((await self.get("/admin/connections", source="::/0"))["total"], 0)

    async def test_block_and_unblock(self) -> None:
        device, _ = await self.setup.pair()
        entry = {"network": "127.0.0.1", "access": "block", "ttl": 3600, "note": "test"}
        answer = await self.ask("POST", "/admin/lists", value=entry)
        self.assertEqual((answer.status, answer.json["note"]), (201, "admin writer: test"))
        await ended(device)
        self.assertIsInstance(device.relay.error, errors.Blocked)
        self.assertEqual((await self.get("/admin/lists", access="block"))["total"], 1)
        answer = await self.ask("DELETE", "/admin/lists", query={"network": "127.0.0.1/32"})
        self.assertEqual((answer.status, answer.json["network"]), (200, "127.0.0.1/32"))
        await self.setup.pair()

    async def test_pin_and_unpin_and_both_outlive_a_restart(self) -> None:
        newcomer = SigningKey.generate()
        public_key = bytes(newcomer.verify_key)
        device_id = key_id(public_key)
        token = replace(self.setup.token, device_id=device_id).sign(newcomer)
        answer = await self.ask("POST", "/admin/keys", value={"public_key": public_key.hex(), "tier": "paid"})
        self.assertEqual((answer.status, answer.json["kept"], answer.json["key"]["tier"]), (201, True, "paid"))
        self.setup.keys[Role.DEVICE] = newcomer
        client = await self.setup.connect(Role.DEVICE, token=token)
        filed = next(item for item in (await self.get("/admin/keys"))["items"] if item["source"] == "file")
        self.assertEqual((await self.ask("DELETE", f"/admin/keys/{filed['device_id']}")).json["key"]["pinned"], False)
        self.assertEqual((await self.ask("POST", "/admin/reload")).status, 200)
        self.service.stop_draining()
        self.assertFalse(client.relay.is_closed)
        stopped = self.service.stopService()
        self.service.stop_draining()
        await stopped
        self.service = self.setup.front()
        known = {item["device_id"]: item["pinned"] for item in (await self.get("/admin/keys"))["items"]}
        self.assertEqual(known, {device_id.hex(): True, filed["device_id"]: False})
        again = await self.setup.connect(Role.DEVICE, token=token)
        answer = await self.ask("DELETE", f"/admin/keys/{device_id.hex()}")
        self.assertEqual((answer.status, answer.json["ended"], answer.json["key"]["pinned"]), (200, 1, False))
        await ended(again)
        with self.assertRaises(DeviceUnknown):
            await self.setup.connect(Role.DEVICE, token=token)

    async def test_drain(self) -> None:
        device, peer = await self.setup.pair()
        for _ in range(2):  # asking again changes nothing
            answer = await self.ask("POST", "/admin/drain")
            self.assertEqual((answer.status, answer.json["state"], answer.json["allocations"]), (202, "draining", 1))
        with self.assertRaises(Draining):
            await self.setup.connect(Role.DEVICE)
        await exchange_datagrams(device, peer, b"while draining")
        self.assertEqual((await self.get("/admin/stats"))["state"], "draining")
        await device.relay.release()
        await eventually_answers(self.allocations, 0, "the number of allocations")

    async def test_reload(self) -> None:
        config = self.setup.made.config
        text = config.read_text()
        config.write_text(f'idle_timeout = "23s"\nworkers_of_mine = 3\n{text}')
        answer = await self.ask("POST", "/admin/reload")
        self.assertEqual(answer.status, 409)
        self.assertTrue(any("workers_of_mine" in problem for problem in answer.json["problems"]))
        config.write_text(f'idle_timeout = "23s"\n{text}'.replace('drain_timeout = "1h"', 'drain_timeout = "30min"'))
        answer = await self.ask("POST", "/admin/reload")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.json["changed"], ["drain_timeout", "idle_timeout"])
        device = await self.setup.connect(Role.DEVICE)
        allocated: Any = device.relay.allocated
        self.assertEqual(allocated.idle_timeout, 23)

    async def test_trace(self) -> None:
        await self.setup.connect(Role.DEVICE)
        answer = await self.ask("POST", f"/admin/allocations/{self.setup.token.allocation_id.hex()}/qlog")
        self.assertEqual((answer.status, answer.json["directory"]), (202, str((self.directory / "qlogs").absolute())))
        peer = await self.setup.connect(Role.PEER)
        self.assertEqual(list((self.directory / "qlogs").glob("*.qlog")), [])
        peer.relay.close()
        await eventually(lambda: list((self.directory / "qlogs").glob("*.qlog")), "the recording")


class NoQlogTests(AdminCase):
    """Issue "run it": without qlog_dir there is nowhere to write to, which is a conflict."""

    async def test_it_is_409(self) -> None:
        await self.setup.connect(Role.DEVICE)
        answer = await self.ask("POST", f"/admin/allocations/{self.setup.token.allocation_id.hex()}/qlog", token=WRITE_TOKEN)
        self.assertEqual(answer.status, 409)
        self.assertIn("qlog_dir", answer.json["detail"])


class AmbiguousTests(AdminCase):
    """Issue "run it": 409 with the full forms where two devices share an id."""

    async def test_it_is_409_with_the_full_names(self) -> None:
        other = SigningKey.generate()
        await self.ask("POST", "/admin/keys", value={"public_key": bytes(other.verify_key).hex()})
        await self.setup.connect(Role.DEVICE)
        twin = replace(self.setup.token, device_id=key_id(bytes(other.verify_key))).sign(other)
        self.setup.keys[Role.DEVICE] = other
        await self.setup.connect(Role.DEVICE, token=twin)
        path = f"/admin/allocations/{twin.allocation_id.hex()}"
        answer = await self.ask("DELETE", path, query={"reason": "x"})
        self.assertEqual((answer.status, len(answer.json["candidates"])), (409, 2))
        self.assertEqual((await self.ask("GET", path)).json, answer.json)
        for name in answer.json["candidates"]:
            self.assertEqual((await self.get(f"/admin/allocations/{name}"))["id"], name)
