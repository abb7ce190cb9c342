# Sourced by bin/pgr and bin/pgr-supervise, which set `bin`: sets `python`, the interpreter that has what they need.
#
#   $PGR_PYTHON, else the environment that bin/demo or bin/test made, else python3 if it has it all, else the environment
#   that bin/demo would make is made now
# shellcheck shell=sh

root=${bin%/bin}
python=${PGR_PYTHON:-}
for candidate in "$root/.venv" "/var/cache/pgr/$(printf '%s' "$root" | cksum | cut -d' ' -f1)/venv"; do
    if [ -z "$python" ] && [ -x "$candidate/bin/python" ] && [ "$(id -u)" != 0 -o "${candidate#/var}" != "$candidate" ]; then
        python=$candidate/bin/python
    fi
done
if [ -z "$python" ] && ! python3 -P -c 'import psycopg, typer, watchdog, zmq' 2>/dev/null; then
    python=$(bash -euo pipefail -c 'root=$1; . "$root/bin/env.sh"
        python=$(find_python) || python=
        make_environment base; compile_sources; echo "$venv/bin/python"' - "$root")
fi
python=${python:-python3}
