#!/bin/sh
# run.sh: builds the web example, runs it, asks it for its page, and takes it away again.
# RBUILD names the program (default: rbuild).
set -eu
cd "$(dirname "$0")"
rbuild=${RBUILD:-rbuild}
RBUILD=$rbuild ../base/make.sh debian
"$rbuild" build -t rbuild-web .
container=$("$rbuild" run -d rbuild-web)
trap '"$rbuild" rm -f "$container" >/dev/null' EXIT INT TERM
address=$("$rbuild" inspect -f '{{.NetworkSettings.IPAddress}}' "$container")
curl --fail --silent --show-error --noproxy '*' --retry 20 --retry-connrefused --retry-delay 1 "http://$address:8080/"
