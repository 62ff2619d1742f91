#!/bin/sh
# Builds the quicgo client into the directory $1, offline, from Debian's packages.
# Exit status: 0 built, 2 wrong usage, 3 Go or the quic-go package is missing, else that of `go build`.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 DIRECTORY" >&2
    exit 2
fi
if ! command -v go >/dev/null 2>&1; then
    echo "quicgo: cannot build, there is no 'go' command: install the Debian package golang" >&2
    exit 3
fi
gopath=/usr/share/gocode
if [ ! -d "$gopath/src/github.com/lucas-clemente/quic-go" ]; then
    echo "quicgo: cannot build, quic-go is missing: install the Debian package golang-github-lucas-clemente-quic-go-dev" >&2
    exit 3
fi

mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
if [ -z "${GOCACHE:-}${XDG_CACHE_HOME:-}${HOME:-}" ]; then
    GOCACHE=$out/.gocache # go build insists on a cache somewhere
    export GOCACHE
fi
export GO111MODULE=off GOPATH="$gopath" GOPROXY=off GOFLAGS= CGO_ENABLED=0
exec go build -o "$out/quicgo" .
