# Sourced by bin/pgr and bin/pgr-supervise, which set `bin`: sets `python`, the interpreter that has what they need.
#
#   $PGR_PYTHON, else the environment that bin/demo or bin/test made (bin/env.sh), else python3 if it has it all, else the
#   environment that bin/demo would make is made now
# shellcheck shell=sh

root=${bin%/bin}
python=${PGR_PYTHON:-}
key=$(printf '%s' "$root" | cksum | cut -d' ' -f1)
has_all() { "$1" -P -c 'import psycopg, typer, watchdog, zmq' 2>/dev/null; }
for venv in "$root/.venv" "/var/cache/pgr/$key/venv" "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pgr/$key/venv"; do
    if [ -n "$python" ] || [ ! -x "$venv/bin/python" ]; then continue; fi
    # As root only where the nodes' user can read it.
    if [ "$(id -u)" = 0 ] && [ "${venv#/var}" = "$venv" ]; then continue; fi
    # Without a stamp somebody is making it, or has not come to the end.
    if [ -e "$venv/.pgr-base" ] || [ -e "$venv/.pgr-dev" ] || has_all "$venv/bin/python"; then python=$venv/bin/python; fi
done
if [ -z "$python" ] && ! has_all python3; then
    python=$(bash -euo pipefail -c 'root=$1; . "$root/bin/env.sh"
        python=$(find_python) || python=
        make_environment base; compile_sources; echo "$venv/bin/python"' - "$root")
fi
python=${python:-python3}
