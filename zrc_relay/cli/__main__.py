"""``python -m zrc_relay.cli``: the command ``zrc-relay``, also where it is not installed."""

from zrc_relay.cli.main import main

main(prog_name="zrc-relay")
