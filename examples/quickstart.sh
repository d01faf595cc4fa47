#!/bin/sh
# quickstart.sh: on a Debian machine, installs what building rbuild needs, builds it, then builds and runs
# examples/hello with it. Needs root: for the packages, and because rbuild starts containers.
set -eu
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive

missing=
for package in build-essential ca-certificates curl busybox-static; do
  dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ -n "$missing" ]; then
  apt-get update
  # shellcheck disable=SC2086
  apt-get install -y --no-install-recommends $missing
fi

# Debian's own cargo may be older than what the workspace asks for.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
present=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ "$(printf '%s\n%s\n' "$wanted" "${present:-0}" | sort -V | head -n 1)" != "$wanted" ]; then
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
  PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi

cargo build --release
# The program is linked statically, which cargo does for a named target: so its folder has the target's name.
RBUILD=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
RBUILD=$RBUILD/$(rustc -vV | sed -n 's/^host: //p')/release/rbuild
export RBUILD
examples/hello/run.sh
