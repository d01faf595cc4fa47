#!/bin/sh
# run.sh: nginx, redis and postgres of Debian's packages, built and run by rbuild; used by their own clients from the
# host (by published port) and from another container (by name); stopped, started again, and their data is still there.
# Needs root and Debian's mirror. RBUILD names the program (default: rbuild). Takes a minute once the packages are cached.
set -eu
cd "$(dirname "$0")"
rbuild=${RBUILD:-rbuild}
RBUILD=$rbuild ../base/make.sh debian

say() { printf '== %s\n' "$*"; }
fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || fail "$3: expected '$2', got '$1'"; }

for target in nginx redis postgres clients; do
  say "build $target"
  "$rbuild" build -q -t "servers-$target" --target "$target" .
done

clear_up() {
  "$rbuild" rm -f web cache db >/dev/null 2>&1 || true
  "$rbuild" volume rm pages records tables >/dev/null 2>&1 || true
  "$rbuild" network rm servers >/dev/null 2>&1 || true
}
clear_up
trap clear_up EXIT INT TERM

"$rbuild" network create servers >/dev/null
"$rbuild" volume create pages >/dev/null
say "start"
"$rbuild" run -d --name web --network servers -p 127.0.0.1::80 -v pages:/var/www/html servers-nginx >/dev/null
"$rbuild" run -d --name cache --network servers -p 127.0.0.1::6379 -v records:/data servers-redis >/dev/null
"$rbuild" run -d --name db --network servers -p 127.0.0.1::5432 -v tables:/var/lib/postgresql/data \
  -e POSTGRES_PASSWORD=secret servers-postgres >/dev/null

port() { "$rbuild" port "$1" "$2" | sed 's/.*://'; }
# A client on the host if it is installed there, else in a container that has the host's network.
host() {
  if command -v "$1" >/dev/null 2>&1; then "$@"; else "$rbuild" run --rm --network host -e PGPASSWORD servers-clients "$@"; fi
}
inside() { "$rbuild" run --rm --network servers -e PGPASSWORD servers-clients "$@"; }
export PGPASSWORD=secret

use() {
  "$rbuild" wait --condition healthy cache db >/dev/null
  echo "hello from $1" | "$rbuild" exec -i web sh -c 'cat >/var/www/html/hello.txt'
  same "$(host curl -fsS --retry 20 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$(port web 80)/hello.txt")" \
    "hello from $1" "nginx from the host"
  same "$(inside curl -fsS http://web/hello.txt)" "hello from $1" "nginx from another container"
  host redis-cli -p "$(port cache 6379)" rpush lives "$1" >/dev/null
  same "$(inside redis-cli -h cache lindex lives -1)" "$1" "redis from another container"
  host psql -q -h 127.0.0.1 -p "$(port db 5432)" -U postgres -c "create table if not exists lives (name text)" \
    -c "insert into lives values ('$1')"
  same "$(inside psql -h db -U postgres -Atc "select name from lives order by name desc limit 1")" "$1" \
    "postgres from another container"
}

say "use them"
use life-1
say "stop, and see that they ended by themselves"
"$rbuild" stop web cache db >/dev/null
for name in web cache db; do
  same "$("$rbuild" inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$name")" "exited 0" "the end of $name"
done
say "start again, and use them again"
"$rbuild" start web cache db >/dev/null
use life-2
same "$(inside redis-cli -h cache lrange lives 0 -1 | tr '\n' ' ')" "life-1 life-2 " "what redis kept"
same "$(inside psql -h db -U postgres -Atc "select count(*) from lives")" 2 "what postgres kept"
say "remove the containers, keep the volumes, run new ones"
"$rbuild" rm -f web cache db >/dev/null
"$rbuild" run -d --name db --network servers -v tables:/var/lib/postgresql/data servers-postgres >/dev/null
"$rbuild" wait --condition healthy db >/dev/null
same "$(inside psql -h db -U postgres -Atc "select string_agg(name, ' ' order by name) from lives")" "life-1 life-2" \
  "what the volume kept"
say "all of it works"
