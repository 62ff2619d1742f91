"""The HTTP client for external systems, against real servers on loopback, some of them hostile."""

from __future__ import annotations

import datetime as dt
import socket
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from tests.real_relay import PATIENCE, eventually, reactor
from tests.web_server import Answer, RawServer, WebServer, key_pem, make_certificate
from zrc_relay import __version__
from zrc_relay.abuse.http import MAX_OVERHEAD, HttpClient, HttpError, TrustError

LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))
LOCALHOST = x509.DNSName("localhost")


class HttpCase(TestCase):
    """Makes clients."""

    timeout = 2 * PATIENCE

    def client(self, url: str, *, timeout: float = PATIENCE, max_body: int = 1000, ca: bytes | None = None) -> HttpClient:
        path = None
        if ca is not None:
            path = Path(self.mktemp())
            path.write_bytes(ca)
        return HttpClient(reactor, url, ca_path=path, timeout=timeout, max_body=max_body)

    async def problem(self, client: HttpClient) -> str:
        """What is wrong with asking."""
        with self.assertRaises(HttpError) as caught:
            await client.request("GET")
        return str(caught.exception)


class RequestTests(HttpCase):
    """R6.6: what is asked arrives, and what is answered comes back, whatever its status."""

    async def test_a_request_and_its_answer(self) -> None:
        server = WebServer(self)
        server.answer = lambda _: Answer(b"fine", 201)
        response = await self.client(server.url("/in?x=1")).request("POST", headers={"X-Test": "yes"}, body=b"content")
        self.assertEqual((response.status, response.body), (201, b"fine"))
        [asked] = server.asked
        self.assertEqual((asked.method, asked.uri, asked.body), ("POST", "/in?x=1", b"content"))
        self.assertEqual((asked.headers["x-test"], asked.headers["user-agent"]), ("yes", f"zrc-relay/{__version__}"))
        self.assertEqual(asked.headers["content-length"], "7")

    async def test_a_path_goes_behind_the_url(self) -> None:
        server = WebServer(self)
        await self.client(server.url("/base")).request("GET", "/more?a=b")
        self.assertEqual(server.asked[0].uri, "/base/more?a=b")

    async def test_redirects_are_not_followed(self) -> None:
        server = WebServer(self)
        server.answer = lambda _: Answer(status=302, headers={"Location": server.url("/elsewhere")})
        self.assertEqual((await self.client(server.url()).request("GET")).status, 302)
        self.assertEqual(len(server.asked), 1)

    async def test_a_body_without_a_length_ends_with_its_connection(self) -> None:
        def answer(transport: Any) -> None:
            transport.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            transport.loseConnection()

        response = await self.client(RawServer(self, answer).url).request("GET")
        self.assertEqual(response.body, b"all of it")

    async def test_a_chunked_body(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        response = await self.client(RawServer(self, lambda transport: transport.write(answer)).url).request("GET")
        self.assertEqual(response.body, b"abcde")

    async def test_the_connection_is_ended_although_the_server_keeps_it(self) -> None:
        server = RawServer(self, lambda transport: transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
        await self.client(server.url).request("GET")
        await eventually(lambda: server.lost, "the end of the connection")


class HostileTests(HttpCase):
    """R6.6, R6.9: time and size are bounded, and every failure is one error that says what happened."""

    async def check_ends(self, server: RawServer, expected: str, **arguments: Any) -> None:
        self.assertRegex(await self.problem(self.client(server.url, **arguments)), expected)
        await eventually(lambda: server.lost, "the end of the connection")

    async def test_a_server_that_says_nothing(self) -> None:
        await self.check_ends(RawServer(self, lambda _: None), r"\Ano answer within 0.2 s\Z", timeout=0.2)

    async def test_a_server_that_stops_in_the_middle(self) -> None:
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"
        await self.check_ends(RawServer(self, lambda transport: transport.write(half)), r"\Ano answer within", timeout=0.2)

    async def test_a_body_that_is_too_long(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"
        server = RawServer(self, lambda transport: transport.write(head + bytes(1000 + MAX_OVERHEAD)))
        await self.check_ends(server, r"\Athe answer is longer than 1000 bytes\Z")

    async def test_a_body_as_long_as_allowed(self) -> None:
        server = WebServer(self)
        server.answer = lambda _: Answer(bytes(1000))
        self.assertEqual(len((await self.client(server.url()).request("GET")).body), 1000)

    async def test_headers_without_end(self) -> None:
        headers = b"HTTP/1.1 200 OK\r\n" + b"X-Header: more\r\n" * 10_000
        await self.check_ends(RawServer(self, lambda transport: transport.write(headers)), r"\Athe answer is longer than")

    async def test_interim_answers_without_end(self) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000
        await self.check_ends(RawServer(self, lambda transport: transport.write(interim)), r"\Athe answer is longer than")

    async def test_no_http_at_all(self) -> None:
        server = RawServer(self, lambda transport: transport.write(b"SSH-2.0-x\r\n\r\n" * 10))
        await self.check_ends(server, r"SSH")

    async def test_a_connection_that_ends_early(self) -> None:
        def answer(half: bytes, transport: Any) -> None:
            transport.write(half)
            transport.loseConnection()

        for half in (b"", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"):
            server = RawServer(self, partial(answer, half))
            await self.check_ends(server, r"\AConnection was closed|\AConnection to the other side was lost|\A.*length")

    async def test_nobody_listens(self) -> None:
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))  # and does not listen
        client = self.client(f"http://127.0.0.1:{taken.getsockname()[1]}")
        self.assertEqual(await self.problem(client), "Connection was refused by other side: 111: Connection refused.")

    async def test_cancelling_ends_the_connection(self) -> None:
        server = RawServer(self, lambda _: None)
        asking = Deferred.fromCoroutine(self.client(server.url).request("GET"))
        await eventually(lambda: server.received, "the request")
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        await eventually(lambda: server.lost, "the end of the connection")

    async def test_a_problem_repeats_no_url_and_no_header(self) -> None:
        server = RawServer(self, lambda transport: transport.loseConnection())
        client = self.client(f"{server.url}/path?tenant=sesame")
        with self.assertRaises(HttpError) as caught:
            await client.request("GET", headers={"X-Api-Key": "sesame"})
        self.assertNotIn("sesame", str(caught.exception))


class CertificateTests(HttpCase):
    """R6.6: the certificate is verified: signed by somebody trusted, for that host, and in force."""

    async def test_a_certificate_of_a_trusted_authority_for_the_address(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority))
        server.answer = lambda _: Answer(b"secret")
        response = await self.client(server.url(), ca=authority.pem).request("GET")
        self.assertEqual(response.body, b"secret")

    async def test_a_host_name(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOCALHOST, signed_by=authority))
        self.assertEqual((await self.client(server.url(host="localhost"), ca=authority.pem).request("GET")).status, 200)

    async def test_one_of_several_authorities(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority))
        both = make_certificate().pem + authority.pem
        self.assertEqual((await self.client(server.url(), ca=both).request("GET")).status, 200)

    async def refused(self, server: WebServer, expected: str, ca: bytes | None, host: str = "127.0.0.1") -> None:
        self.assertRegex(await self.problem(self.client(server.url(host=host), ca=ca)), expected)
        self.assertEqual(server.asked, [], "nothing was sent")

    async def test_an_authority_that_the_host_does_not_know(self) -> None:
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=make_certificate()))
        await self.refused(server, r"\ATLS: certificate verify failed", None)

    async def test_another_authority(self) -> None:
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=make_certificate()))
        await self.refused(server, r"\ATLS: certificate verify failed", make_certificate().pem)

    async def test_another_name(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOCALHOST, signed_by=authority))
        await self.refused(server, r"\Athe server's certificate is for another name\Z", authority.pem)
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority))
        await self.refused(server, r"\Athe server's certificate is for another name\Z", authority.pem, "localhost")

    async def test_one_without_names_and_one_whose_names_cannot_be_understood(self) -> None:
        authority = make_certificate()
        for names in ((), (x509.DNSName("127.0.0.1"),), (LOOPBACK, x509.DNSName("*"))):
            server = WebServer(self, make_certificate(*names, signed_by=authority))
            await self.refused(server, r"\Athe server's certificate names no server as it should: ", authority.pem)

    async def test_one_that_is_over(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority, ends=-dt.timedelta(hours=1)))
        await self.refused(server, r"\ATLS: certificate verify failed", authority.pem)

    async def test_no_tls_at_all(self) -> None:
        server = RawServer(self, lambda transport: transport.write(b"HTTP/1.1 200 OK\r\n\r\n"))
        client = self.client(server.url.replace("http:", "https:"))
        self.assertRegex(await self.problem(client), r"\ATLS: ")
        self.assertNotIn(b"HTTP", server.received)

    async def test_a_tls_connection_is_ended_although_the_server_keeps_it(self) -> None:
        authority = make_certificate()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        server = RawServer(
            self, lambda transport: transport.write(answer), make_certificate(LOOPBACK, signed_by=authority))
        self.assertEqual((await self.client(server.url, ca=authority.pem).request("GET")).body, b"hi")
        await eventually(lambda: server.lost, "the end of the connection")

    def test_files_that_hold_no_certificate(self) -> None:
        damaged = b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"
        for content in (b"", b"nonsense", key_pem(make_certificate()), damaged):
            with self.assertRaises(TrustError) as caught:
                self.client("https://127.0.0.1/", ca=content)
            self.assertIn("holds no PEM certificate", str(caught.exception))

    def test_a_file_that_is_not_there(self) -> None:
        with self.assertRaises(TrustError) as caught:
            HttpClient(reactor, "https://127.0.0.1/", ca_path=Path("nowhere.pem"), timeout=1, max_body=1)
        self.assertEqual(str(caught.exception), "cannot read the certificates nowhere.pem: No such file or directory")


