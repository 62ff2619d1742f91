"""Which packages are installed, and which modules are compiled; everything else is in pyproject.toml.

``twisted.plugins`` is listed although it is not ours: that puts our plugin file beside Twisted's own plugins, where ``twistd``
looks from any directory. It has no ``__init__.py`` here, so none of Twisted's files is touched.

With ``ZRC_RELAY_COMPILE=1`` in the environment the modules on the way of a packet are compiled with mypyc. Whether that is set,
and what the build then needs, is decided by ``scripts/build_backend.py``, through which pip comes here (docs/compiled.md).
"""

import os

from setuptools import find_packages, setup

COMPILED = (
    "core/allocation.py", "core/channel.py", "core/counters.py", "core/histogram.py", "core/limiter.py",
    "core/session.py", "core/varint.py", "quic/congestion.py", "quic/egress.py", "quic/endpoint.py", "quic/fastpath.py",
    "quic/frames.py", "quic/gather.py", "quic/link.py", "quic/onertt.py", "quic/outlet.py", "quic/recent.py",
    "quic/routes.py", "quic/udp.py", "quic/wheel.py",
)
"""What a packet goes through, as one unit: a call from one of these to another does not go through the interpreter."""
modules = []
if os.environ.get("ZRC_RELAY_COMPILE") == "1":
    from mypyc.build import mypycify

    # What was an error of types in a dependency may be none in its next release: no reason to compile nothing.
    options = ["--no-warn-unused-ignores"]
    modules = mypycify([*options, *(f"zrc_relay/{name}" for name in COMPILED)], group_name="zrc_relay", debug_level="0")

setup(
    packages=[*find_packages(include=["zrc_relay", "zrc_relay.*"]), "twisted.plugins"],
    # Said although it is the default: with it an editable install is a plain entry on sys.path, where the plugin is found.
    package_dir={"": "."},
    package_data={"zrc_relay": ["py.typed"]},
    ext_modules=modules,
)
