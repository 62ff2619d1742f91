"""Pinned device keys: who may sign tokens, and in which tier (R1.2, R8).

The file is TOML: ``[[device]]`` tables with ``public_key`` (64 hex digits) and optionally ``tier`` and ``note``. Parsing collects
every problem before it refuses, so that an operator mends a file once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from zrc_relay.core.token import key_id

_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


class KeyFileError(Exception):
    """A device key file that cannot be used; ``problems`` holds one line for each thing wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Device:
    """A device: its 32-byte public key, the name of its tier (empty: the defaults) and the operator's note.

    ``self_certified``: nobody has pinned it; it has shown that it holds the key that its id is made of.
    """

    public_key: bytes
    tier: str = ""
    note: str = ""
    self_certified: bool = False


KeyChanges = Mapping[bytes, Device | None]
"""What holds of some devices from now on, by their ids; None: they are not pinned."""


class DeviceKeys:
    """The pinned devices by device id."""

    def __init__(self, devices: Collection[Device] = ()) -> None:
        self._devices = {key_id(device.public_key): device for device in devices}

    def get(self, device_id: bytes) -> Device | None:
        """The device whose key hashes to ``device_id``, if it is pinned."""
        return self._devices.get(device_id)

    def with_changes(self, changes: KeyChanges) -> DeviceKeys:
        """These keys, but for those devices of which ``changes`` say something else. No key is hashed again."""
        made = DeviceKeys()
        devices = made._devices = self._devices.copy()
        for device_id, device in changes.items():
            if device is None:
                devices.pop(device_id, None)
            else:
                devices[device_id] = device
        return made

    def changes_to(self, wanted: DeviceKeys) -> dict[bytes, Device | None]:
        """The fewest changes by which ``with_changes`` makes ``wanted`` of these."""
        ours, theirs = self._devices, wanted._devices
        changes: dict[bytes, Device | None] = dict.fromkeys(ours.keys() - theirs.keys())
        for device_id, device in theirs.items():
            known = ours.get(device_id)
            if known is not device and known != device:  # most are the very same, and to compare them takes longer
                changes[device_id] = device
        return changes

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._devices)


def parse_device_keys(text: str, *, tiers: Collection[str]) -> DeviceKeys:
    """The devices in a key file's ``text``; ``KeyFileError`` lists every problem. ``tiers`` are the names a device may use."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        # Beyond its own error the parser lets through what int() says of 5000 digits and what deep nesting does to the stack.
        raise KeyFileError([f"not TOML: {error}"]) from error
    problems = [f"unknown key {name!r}; only [[device]] tables belong here" for name in document if name != "device"]
    tables = document.get("device", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise KeyFileError([*problems, "'device' must be written as [[device]] tables"])
    devices: list[Device] = []
    first_seen: dict[bytes, int] = {}
    for number, table in enumerate(tables, start=1):
        wrong, device = _parse_device(table, tiers)
        if device is not None:
            earlier = first_seen.setdefault(device.public_key, number)
            if earlier != number:
                wrong.append(f"the same public_key as device {earlier}")
            devices.append(device)
        problems += [f"device {number}: {problem}" for problem in wrong]
    if problems:
        raise KeyFileError(problems)
    return DeviceKeys(devices)


def _parse_device(table: dict[str, object], tiers: Collection[str]) -> tuple[list[str], Device | None]:
    problems = [f"unknown key {name!r}" for name in table if name not in ("public_key", "tier", "note")]
    public_key = _hex_key(table.get("public_key"))
    if public_key is None:
        problems.append("public_key must be 64 hex digits")
    tier = table.get("tier", "")
    if not isinstance(tier, str) or (tier and tier not in tiers):
        problems.append(f"tier {tier!r} is not one of {', '.join(sorted(tiers))}")
    note = table.get("note", "")
    if not isinstance(note, str):
        problems.append("note must be text")
    if public_key is None or not isinstance(tier, str) or not isinstance(note, str):
        return problems, None
    return problems, Device(public_key, tier, note)


def _hex_key(value: object) -> bytes | None:
    if not isinstance(value, str) or _HEX_KEY.fullmatch(value) is None:
        return None
    return bytes.fromhex(value)
