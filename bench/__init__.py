"""Benchmarks: what the relay costs, measured beside others in the same run (``make bench``, ``python -m bench.run``).

* ``run`` is the program; ``scenarios`` says what is measured, ``budgets`` what is wanted of it.
* ``systems`` are the relays that are measured: ours, and the peers under ``peers/``, which are real programs of a few lines each
  that pair connections two by two on another QUIC stack, and coturn.
* ``load/`` is the load generator, in Go; ``generator`` runs it. coturn brings its own (``turn``).
* ``build`` makes what has to be compiled, offline, in ``.build/``.
* ``outcome`` holds what was found and does the statistics; ``report`` and ``plots`` write it down.
"""
