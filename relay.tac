"""A relay for ``twistd -y relay.tac``; the TOML file is the one ZRC_RELAY_CONFIG names, else ./relay.toml."""

import os

from twisted.application.service import Application

from zrc_relay.tap import build_service

application = Application("zrc-relay")
build_service({} if os.environ.get("ZRC_RELAY_CONFIG") else {"config": "relay.toml"}).setServiceParent(application)
