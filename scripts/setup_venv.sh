#!/bin/sh
# Makes .venv, or brings it up to date: the virtual environment with the relay (editable) and all that "make test" needs.
# Does nothing when it is newer than pyproject.toml and setup.py. PYTHON names the interpreter, python3 unless told.
#
# With --compiler it installs what compiling takes instead, where it is missing and that is allowed: a C compiler, and the headers of
# the C library and of Python. It never fails: who goes on without them says what is missing.
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

can_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get install -y -qq "$@" >/dev/null 2>&1 \
        || { as_root apt-get update -qq && as_root apt-get install -y -qq "$@" >/dev/null; }
}

# Debian's python3 comes without what a virtual environment needs to have pip in it.
install_venv_module() {
    package=python$version-venv
    hint="$python cannot make virtual environments; install the package $package and try again"
    can_install || fail "$hint"
    echo "zrc-relay: installing $package, which $python lacks"
    install "$package" || fail "$hint"
}

# Headers of a Python that is not Debian's come with it or not at all; then python3-dev does no good, and no harm.
install_compiler() {
    lack=$(PYTHONPATH=scripts "$venv/bin/python" -c "import build_backend; print(build_backend.lacking_compiler())") || return 0
    [ -n "$lack" ] && can_install || return 0
    version=$("$venv/bin/python" -c "import sys; print('%d.%d' % sys.version_info[:2])")
    echo "zrc-relay: installing a C compiler and Python's headers, for $lack"
    install gcc libc6-dev "python$version-dev" || install gcc libc6-dev python3-dev || true
}

if [ "${1:-}" = --compiler ]; then
    install_compiler
    exit 0
fi
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
# Sources are what runs here; nothing is fetched or compiled for the other form, whatever the caller's environment says.
ZRC_RELAY_COMPILE=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --editable ".[test]" \
    || fail "the packages could not be installed; see above"
printf '%s\n' "$PWD" >"$stamp"
