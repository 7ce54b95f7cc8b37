#!/bin/sh
# What `make run` does once everything is built: starts the five services on the bundled model, sends a prompt, streams
# the answer with its figures, and stops them again. On a failure the services' log is shown.
set -eu
cd "$(dirname "$0")/.."
quintet="${QUINTET_BUILD:-build}/quintet"
prompt="${PROMPT:-The SELECT statement retrieves}"
tokens="${TOKENS:-96}"

directory=$(mktemp -d "${TMPDIR:-/tmp}/quintet-run-XXXXXX")
log="$directory/log"
services=""
finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$services" ]; then
        kill -TERM "$services" 2>/dev/null || true
        wait "$services" || { [ "$status" -ne 0 ] || status=1; echo "make run: the services did not stop cleanly" >&2; }
    fi
    if [ "$status" -ne 0 ]; then
        echo "make run: failed with $status; the log of the services:" >&2
        cat "$log" >&2 || true
    fi
    rm -rf "$directory"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# QUINTET_FRONTEND_LISTEN when it is given; else port 8000 when nobody has it, else one that the kernel picks.
listen="${QUINTET_FRONTEND_LISTEN:-}"
if [ -z "$listen" ]; then
    unset QUINTET_FRONTEND_LISTEN
    listen=$(python3 - <<'PYTHON'
import socket
for port in (8000, 0):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(f"127.0.0.1:{probe.getsockname()[1]}")
        break
PYTHON
    )
fi
# Where a client on this machine finds that address: any interface is loopback, too.
case "$listen" in
unix:*) QUINTET_URL="$listen" ;;
:*) QUINTET_URL="http://127.0.0.1$listen" ;;
0.0.0.0:*) QUINTET_URL="http://127.0.0.1:${listen##*:}" ;;
"[::]:"*) QUINTET_URL="http://[::1]:${listen##*:}" ;;
*) QUINTET_URL="http://$listen" ;;
esac
export QUINTET_URL
curl="curl -N"
curl_url="$QUINTET_URL"
case "$listen" in unix:*) curl="curl -N --unix-socket ${listen#unix:}" curl_url="http://localhost" ;; esac

echo "starting the five services (quintet up) on $QUINTET_URL ..."
# In a session of their own: Ctrl-C here reaches them once, through finish.
setsid "$quintet" up --run-dir "$directory" --set "frontend.listen=$listen" >"$log" 2>&1 </dev/null &
services=$!
"$quintet" status --wait 60
echo
printf '> %s\n\n' "$prompt"
"$quintet" generate --echo --max-tokens "$tokens" --temperature 0 -- "$prompt"

cat <<TEXT

It works. To keep the services running:

  $quintet up                                in one terminal
  $quintet generate "A transaction is"       in another
  $quintet sniff                             every message between them, decoded
  $quintet status                            the five services
  $curl $curl_url/v1/completions -H 'Content-Type: application/json' \\
       -d '{"prompt": "A transaction is", "max_tokens": 32, "stream": true}'
TEXT
