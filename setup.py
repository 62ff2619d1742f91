"""Which packages are installed; everything else about the project is in pyproject.toml.

``twisted.plugins`` is listed although it is not ours: that puts our plugin file beside Twisted's own plugins, where ``twistd``
looks from any directory. It has no ``__init__.py`` here, so none of Twisted's files is touched.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["zrc_relay", "zrc_relay.*"]), "twisted.plugins"],
    # Said although it is the default: with it an editable install is a plain entry on sys.path, where the plugin is found.
    package_dir={"": "."},
    package_data={"zrc_relay": ["py.typed"]},
)
