#!/bin/sh
# run.sh: builds the hello example and runs it. RBUILD names the program (default: rbuild).
set -eu
cd "$(dirname "$0")"
rbuild=${RBUILD:-rbuild}
RBUILD=$rbuild ../base/make.sh busybox
"$rbuild" build -t rbuild-hello .
"$rbuild" run --rm --network none rbuild-hello
