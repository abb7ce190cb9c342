# Sourced by bin/demo and bin/test: finds an interpreter and makes the environment they run in.
#
#   ordinary user   .venv in the checkout
#   root            /var/cache/pgr/<checkout>/venv with a system interpreter: Postgres refuses root, so the nodes run as
#                   `postgres` or `nobody`, who can't look into /root. A checkout that they can't read is copied there too.
#
# Uses uv if it is there, else venv + pip. A second run is instant unless pyproject.toml or uv.lock changed.
# shellcheck shell=bash

say() { printf 'pgr: %s\n' "$*" >&2; }
missing() { # what is missing, then the one command that brings it; exit 69 as everywhere in pgr
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 69
}

umask 022
unset VIRTUAL_ENV PYTHONHOME
uid=$(id -u)
as_root=sudo\ 
[ "$uid" != 0 ] || as_root=

# Who the nodes will be when we are root.
node_user() { id -u postgres >/dev/null 2>&1 && echo postgres || echo nobody; }

# $1: python, $2: path. Can the user that the nodes run as read it?
readable_by_nodes() {
    [ "$uid" = 0 ] || return 0
    "$1" -I - "$2" "$(node_user)" <<'PY'
import os, pwd, sys
path, user = os.path.realpath(sys.argv[1]), pwd.getpwnam(sys.argv[2])
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
sys.exit(0 if os.access(path, os.R_OK) else 1)
PY
}

good_python() { # $1: a python >= 3.11 that the nodes' user may run
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 &&
        readable_by_nodes "$1" "$("$1" -I -c 'import sys; print(sys.executable)')" &&
        readable_by_nodes "$1" "$("$1" -I -c 'import os; print(os.__file__)')"
}

find_python() {
    local candidate
    for candidate in ${PGR_PYTHON:-} /usr/bin/python3 /usr/bin/python3.{14,13,12,11} /usr/local/bin/python3{,.14,.13,.12,.11} \
        python3 python3.{14,13,12,11}; do
        candidate=$(command -v "$candidate" 2>/dev/null) || continue
        if good_python "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# A checkout that the nodes' user can't read (a clone in /root, a umask of 077) is run from a copy.
# $1: python, $2: the script to run again, then its arguments.
leave_unreadable_checkout() {
    local python=$1 script=$2
    shift 2
    readable_by_nodes "$python" "$root/pyproject.toml" && readable_by_nodes "$python" "$root/bin" && return 0
    [ -z "${PGR_COPIED:-}" ] || missing "user $(node_user) can't read $root" "chmod a+rX $root and the directories above it"
    local copy
    copy=$(cache_dir)/checkout
    say "user $(node_user), who runs Postgres, can't read $root: running from a copy in $copy"
    rm -rf "$copy"
    mkdir -p "$copy"
    tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=__pycache__ --exclude='./.*_cache' -cf - . | tar -C "$copy" -xf -
    chmod -R a+rX "$copy"
    PGR_COPIED=1 exec "$copy/bin/$script" "$@"
}

cache_dir() { # the place for this checkout below /var/cache/pgr (root), or the checkout itself
    if [ "$uid" = 0 ]; then
        echo "/var/cache/pgr/$(printf '%s' "$root" | cksum | cut -d' ' -f1)"
    elif [ -w "$root" ]; then
        echo "$root"
    else
        echo "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pgr/$(printf '%s' "$root" | cksum | cut -d' ' -f1)"
    fi
}

env_dir() { if [ "$(cache_dir)" = "$root" ]; then echo "$root/.venv"; else echo "$(cache_dir)/venv"; fi; }

uv_works() { command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; }

install_with_uv() { # $1: base or dev
    local groups=(--no-dev)
    [ "$1" = base ] || groups=(--group dev)
    export UV_PROJECT_ENVIRONMENT=$venv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
    if [ "$uid" = 0 ]; then export UV_PYTHON_INSTALL_DIR=/var/cache/pgr/python; fi
    [ -x "$venv/bin/python" ] || uv venv --quiet --python "${python:-3.11}" "$venv" || return 1
    # The lock first; where only a mirror can be reached, what the mirror has.
    (cd "$root" && uv sync --frozen --inexact --extra postgres --python "$venv/bin/python" "${groups[@]}") && return 0
    say "the locked versions could not be had: taking the newest that fit"
    uv pip install --python "$venv/bin/python" --editable "$root[postgres]" $(wanted "$1")
}

install_with_pip() { # $1: base or dev
    [ -n "$python" ] || missing "no Python 3.11 or newer was found" "${as_root}apt-get install -y python3 python3-venv"
    if ! "$python" -I -c 'import ensurepip, venv' >/dev/null 2>&1; then
        local package=python3-venv
        [ "$(readlink -f "$python")" = "$(readlink -f /usr/bin/python3)" ] ||
            package=python$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
        missing "$python can't make an environment: its venv and pip are not installed" "${as_root}apt-get install -y $package"
    fi
    [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" || return 1
    "$venv/bin/python" -m pip install --disable-pip-version-check --editable "$root[postgres]" $(wanted "$1")
}

wanted() { # the dev group, for installers that don't know groups
    [ "$1" = dev ] || return 0
    "$venv/bin/python" -I - "$root/pyproject.toml" <<'PY'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["dependency-groups"]["dev"])
PY
}

# $1: base (what bin/demo needs) or dev (with the tools of bin/test). Sets `venv`; what is missing ends in exit 69.
make_environment() {
    local kind=$1 stamp lock how
    venv=$(env_dir)
    mkdir -p "$(dirname "$venv")"
    stamp="$(cat "$root/pyproject.toml" "$root/uv.lock" | cksum) $root"
    lock=$(dirname "$venv")/.pgr-env.lock
    exec 9>"$lock"
    flock 9 2>/dev/null || true # two at once would trip over each other
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import zmq, psycopg' 2>/dev/null; then
        if [ "$(cat "$venv/.pgr-dev" 2>/dev/null)" = "$stamp" ]; then exec 9>&-; return 0; fi
        if [ "$kind" = base ] && [ "$(cat "$venv/.pgr-base" 2>/dev/null)" = "$stamp" ]; then exec 9>&-; return 0; fi
    fi
    how=pip
    if uv_works; then how=uv; fi
    say "making the environment in $venv with $how (once; it downloads about 60 MB)"
    if ! "install_with_$how" "$kind" 9>&- >&2; then
        rm -f "$venv/.pgr-base" "$venv/.pgr-dev"
        missing "the environment in $venv could not be made (see above)" "check the network, or remove $venv and try again"
    fi
    printf '%s\n' "$stamp" >"$venv/.pgr-$kind"
    exec 9>&-
}

# Bytecode for the nodes' user, who can't write it; without it every start of a child would compile anew.
compile_sources() {
    "$venv/bin/python" -m compileall -q "$root/supervisor" "$root/consensus" "$root/fencing" "$root/bin/pgr_supervise" \
        >/dev/null 2>&1 || true
}
