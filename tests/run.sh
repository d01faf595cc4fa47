#!/bin/bash
# run.sh: everything that must pass before a change is taken. Works without a terminal or standard input.
#
#   CASES_DIR    the acceptance cases (default: ../shared/cases beside the checkout; without them that part is skipped)
#   CASES_AREAS  areas to run, separated by spaces (default: the finished ones, below)
#   CASES_JOBS   cases at a time (default: the number of processors)
set -u
cd "$(dirname "$0")/.." || exit 1
exec </dev/null
export DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

# Areas that are finished stay here.
areas=${CASES_AREAS:-dockerfile add copy dockerignore fs storage errors mounts repro isolation robust volumes commit network lint buildcli cache}
# Cases of these areas that ask for what is refused by name so far.
later=""
# What the tests and the cases call on the host.
packages="build-essential busybox-static debootstrap docker-registry docker.io apache2-utils skopeo umoci curl ca-certificates
  iproute2 iptables jq xz-utils bzip2 zstd gzip file git openssh-client procps libcap2-bin bsdutils attr acl e2fsprogs btrfs-progs xfsprogs mount runc crun"

failed=
part() {
  local name=$1 start=$SECONDS; shift
  echo "=== $name"
  if "$@"; then echo "=== $name: ok, $((SECONDS - start)) s"; else echo "=== $name: FAILED, $((SECONDS - start)) s"; failed="$failed $name"; fi
}

install() {
  local package missing=()
  for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "not installed: ${missing[*]}"; return 1; fi
  apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# The program is linked statically, which cargo does for a named target: so its folder has the target's name.
program() {
  local target
  target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
  echo "$target/$(rustc -vV | sed -n 's/^host: //p')/release/rbuild"
}

cases() {
  local directory=$1 area file name arguments=()
  for area in $areas; do
    for file in "$directory/$area"/*.sh; do
      name=$area/$(basename "$file" .sh)
      case " $later " in *" $name "*) echo "later: $name" ;; *) arguments+=(--only "^$name\$") ;; esac
    done
  done
  RB=$(program) "$directory/run" --tool rbuild -j "${CASES_JOBS:-$(nproc)}" "${arguments[@]}"
}

part packages install
part format cargo fmt --all --check
part clippy cargo clippy --workspace --all-targets --quiet -- -D warnings
part tests cargo test --workspace --quiet
part release cargo build --release --quiet

directory=${CASES_DIR:-../shared/cases}
if [ -x "$directory/run" ]; then
  part cases cases "$directory"
else
  echo "=== cases: skipped, $directory is not there (CASES_DIR names them)"
fi

[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "all passed in $SECONDS s"
