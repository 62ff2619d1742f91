#!/bin/sh
# Makes .venv, or brings it up to date: the virtual environment with the relay (editable) and all that "make test" needs.
# Does nothing when it is newer than pyproject.toml and setup.py. PYTHON names the interpreter, python3 unless told.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.made-for  # holds the directory, because a virtual environment does not survive being moved
python=${PYTHON:-python3}

fail() {
    echo "zrc-relay: $*" >&2
    exit 1
}

is_current() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$PWD" ] && "$venv/bin/python" -c "" 2>/dev/null \
        && [ -z "$(find pyproject.toml setup.py -newer "$stamp")" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Debian's python3 comes without what a virtual environment needs to have pip in it.
install_venv_module() {
    package=python$version-venv
    hint="$python cannot make virtual environments; install the package $package and try again"
    command -v apt-get >/dev/null || fail "$hint"
    as_root true 2>/dev/null || fail "$hint"
    echo "zrc-relay: installing $package, which $python lacks"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get install -y -qq "$package" >/dev/null 2>&1 \
        || { as_root apt-get update -qq && as_root apt-get install -y -qq "$package" >/dev/null; } \
        || fail "$hint"
}

if is_current; then exit 0; fi

command -v "$python" >/dev/null || fail "there is no $python; install Python 3.11 or later"
"$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" || fail "$("$python" --version) is too old; 3.11 or later is needed"
version=$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])")

if ! [ -f "$stamp" ] || [ "$(cat "$stamp")" != "$PWD" ] || ! "$venv/bin/python" -c "" 2>/dev/null; then
    echo "zrc-relay: making $venv; the first time takes a minute"
    rm -rf "$venv"
    "$python" -c "import ensurepip, venv" 2>/dev/null || install_venv_module
    "$python" -m venv "$venv" || fail "$python could not make a virtual environment; see above"
else
    echo "zrc-relay: bringing $venv up to date"
fi
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --editable ".[test]" \
    || fail "the packages could not be installed; see above"
printf '%s\n' "$PWD" >"$stamp"
