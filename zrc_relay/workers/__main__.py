"""What ``python -m zrc_relay.workers`` runs: a worker.

Signals are ignored before anything else is imported, which takes half a second: a terminal or a service manager may send SIGTERM
to all processes at once while a spare is being started.
"""

import signal

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)

from zrc_relay.workers.worker import main  # noqa: E402 - see above

main()
