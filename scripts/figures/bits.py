"""Flipping any single bit of a token or of a proof is refused: every one of them, each on a connection of its own.

Token and proof are made with ``cryptography`` and ``hashlib`` from PROTOCOL §3-4, and accepted as they are before and after. A
flip in the token comes with a proof for the changed token, so that the flip is all that is wrong.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from figures._common import Verdict
from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Allocation, ScriptedClient
from zrc_relay.core.codes import ErrorCode

TOKEN_BITS: Final = 8 * 180
PROOF_BITS: Final = 8 * 64
KEY_BITS: Final = 8 * 32
REFUSALS: Final = range(ErrorCode.TOKEN_MALFORMED, ErrorCode.TOKEN_TOO_LONG + 1)
ENOUGH: Final = 0.6
"""Seconds of the scene from ALLOCATE until a client has certainly heard that it was refused."""


def prove() -> Verdict:
    """Flip them all."""
    world = World()
    key = Ed25519PrivateKey.from_private_bytes(bytes(world.device_key))
    token = world.token().encode()
    codes: Counter[str] = Counter()
    accepted_before = allocated(world, key, token)
    for bit in range(TOKEN_BITS):
        codes[refusal(world, key, flipped(token, bit))] += 1
    for bit in range(KEY_BITS + PROOF_BITS):
        codes[refusal(world, key, token, proof_bit=bit)] += 1
    accepted_after = allocated(world, key, token)
    refused = sum(count for name, count in codes.items() if name)
    wanted = TOKEN_BITS + KEY_BITS + PROOF_BITS
    kept = refused == wanted and accepted_before and accepted_after and world.relay.counters.session_errors == 0
    kinds = ", ".join(f"{count} {name or 'ACCEPTED'}" for name, count in codes.most_common())
    return Verdict(kept, f"{refused} of {wanted} flips of one bit refused ({kinds}); unchanged it is accepted before and after")


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed."""
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


def refusal(world: World, key: Ed25519PrivateKey, token: bytes, proof_bit: int | None = None) -> str:
    """The name of the code that an ALLOCATE is refused with; empty if it is not refused with a code about tokens or proofs."""
    client = ScriptedClient(world)
    world.run(0.05)
    proof = client.proof(token, key, raw.DEVICE)
    client.send_control(Allocation(raw.DEVICE, token, proof if proof_bit is None else flipped(proof, proof_bit)).encode())
    world.run(ENOUGH)
    client.silence()
    code = client.close_code
    return ErrorCode(code).name if code is not None and code in REFUSALS else ""


def allocated(world: World, key: Ed25519PrivateKey, token: bytes) -> bool:
    """Whether the unchanged token and proof are accepted."""
    client = ScriptedClient(world)
    world.run(0.05)
    client.allocate(token, key)
    world.run(0.1)
    client.send_control(raw.capsule(raw.RELEASE))
    accepted = bool(client.values(raw.ALLOCATED))
    world.run(ENOUGH)
    client.silence()
    return accepted
