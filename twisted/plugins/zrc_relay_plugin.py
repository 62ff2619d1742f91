"""Makes ``twistd zrc-relay`` known; imports nothing of the relay, because twistd loads every plugin to list them."""

from twisted.application.service import ServiceMaker

relay = ServiceMaker("zrc-relay", "zrc_relay.tap", "A QUIC relay for devices that cannot reach each other.", "zrc-relay")
