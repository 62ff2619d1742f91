"""Makes the parts that the configuration asks for, out of files and settings (R6.6, R8).

Whatever is wrong with the files becomes one ``SetupError`` with a sentence that names the file, before the relay starts.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from zrc_relay.abuse import bouncer, webhook
from zrc_relay.abuse.blocking import BlockList, NotedBlocks
from zrc_relay.abuse.bouncer import Bouncer
from zrc_relay.abuse.http import HttpClient, TrustError, trust_root
from zrc_relay.abuse.webhook import Webhook
from zrc_relay.config_external import MAX_SECRET, Secret
from zrc_relay.config_table import SECRETS, Config
from zrc_relay.core.cidr import AccessLists

_log = Logger()


class SetupError(Exception):
    """A file of the external systems cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the parts share: the reactor, monotonic and Unix time in seconds, and random numbers from 0 to 1."""

    reactor: Any
    now: Callable[[], float]
    wall: Callable[[], float]
    random: Callable[[], float]


def check_external(config: Config) -> list[str]:
    """Warnings about the files of ``config``; ``SetupError`` with a line for everything that is wrong with them."""
    problems: list[str] = []
    warnings: list[str] = []
    for url, name, ca_path in (
        (config.webhook_url, "webhook_secret", config.webhook_ca_path),
        (config.bouncer_url, "bouncer_key", config.bouncer_ca_path),
    ):
        if url is None:
            continue
        try:
            _secret(config, name)
        except SetupError as error:
            problems.append(str(error))
        else:
            warnings.extend(_open_to_all(config, name))
        try:
            if ca_path is not None:
                trust_root(ca_path)
        except TrustError as error:
            problems.append(str(error))
    if problems:
        raise SetupError("\n".join(problems))
    return warnings


def make_parts(
    config: Config, environment: Environment, lists: AccessLists, instance: bytes
) -> tuple[Webhook | None, Bouncer | None]:
    """Webhook and bouncer, each of them if it is configured, with ``lists`` to put their blocks on; ``SetupError`` otherwise.

    ``instance`` tells runs of the same relay apart.
    """
    for warning in check_external(config):
        _log.warn("{problem}", event="external.warning", problem=warning)
    wall = environment.wall
    return (
        make_webhook(config, environment, NotedBlocks(lists, "webhook", wall), instance),
        make_bouncer(config, environment, NotedBlocks(lists, "bouncer", wall)),
    )


def make_webhook(config: Config, environment: Environment, block_list: BlockList, instance: bytes) -> Webhook | None:
    """The webhook of ``config``, or None; see ``make_parts``."""
    if config.webhook_url is None:
        return None
    secret = _secret(config, "webhook_secret")
    client = _client(environment, config.webhook_url, config.webhook_ca_path, webhook.TIMEOUT, webhook.MAX_ANSWER)
    return Webhook(
        environment.reactor, client, secret, block_list,
        sender={"relay": config.relay_id.hex(), "instance": instance.hex()}, wall=environment.wall, random=environment.random,
    )


def make_bouncer(config: Config, environment: Environment, block_list: BlockList) -> Bouncer | None:
    """The bouncer of ``config``, or None; see ``make_parts``."""
    if config.bouncer_url is None:
        return None
    key = _secret(config, "bouncer_key")
    url = config.bouncer_url.rstrip("/")
    client = _client(environment, url, config.bouncer_ca_path, bouncer.TIMEOUT, bouncer.MAX_ANSWER)
    return Bouncer(
        environment.reactor, client, key, block_list,
        interval=config.bouncer_interval, now=environment.now, wall=environment.wall, random=environment.random,
    )


def _client(environment: Environment, url: str, ca_path: Path | None, timeout: float, max_body: int) -> HttpClient:
    try:
        return HttpClient(environment.reactor, url, ca_path=ca_path, timeout=timeout, max_body=max_body)
    except TrustError as error:
        raise SetupError(str(error)) from error


def _secret(config: Config, name: str) -> Secret:
    """The secret ``name``, from its variable or else from the file that stands for it."""
    rule = SECRETS[name]
    given: Secret | None = getattr(config, name)
    if given is not None:
        return given
    path: Path | None = getattr(config, rule.path_setting)
    if path is None:
        msg = f"there is no {rule.path_setting} and no {rule.variable}"
        raise SetupError(msg)
    try:
        with path.open("rb") as file:
            text = file.read(2 * MAX_SECRET).decode("latin-1")
    except OSError as error:
        msg = f"cannot read the secret {path}: {error.strerror or error}"
        raise SetupError(msg) from error
    try:
        return Secret.parse(text, rule.minimum)
    except ValueError as error:
        msg = f"{path} holds no secret that will do: it {error}; {rule.minimum} to {MAX_SECRET} printable ASCII characters would"
        raise SetupError(msg) from error


def _open_to_all(config: Config, name: str) -> Iterator[str]:
    path: Path | None = getattr(config, SECRETS[name].path_setting)
    if path is not None and path.stat().st_mode & 0o007:
        yield f"everyone on this host has access to the secret {path} (mode {stat.S_IMODE(path.stat().st_mode):04o})"
