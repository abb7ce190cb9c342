"""The schema ``pg_replica``: its functions as SQL text, and the table of the actions they can ask for. Pure.

Every function is the same on every node, as the catalogue is replicated byte for byte. What differs is found beside
pg_hba.conf, which pgr keeps in the run directory: `hba_file` can't be set by a session, a role or a database, and who
writes there rules this server already. Nothing lies in PGDATA, so no base backup, rewind or clone carries it along.

| function kind | runs as | may be called by |
| --- | --- | --- |
| ``_document``, ``_history``, ``_config``, ``_uptime_ms``: read one file each, take no argument | ``pgr`` | `pgr_monitor` |
| ``_request``: writes one file, whose name is random, with the arguments as its content | ``pgr`` | `pgr_admin` |
| all others: make rows of what those return | the caller | either |

`search_path` and `standard_conforming_strings` are pinned: a body is parsed anew in each session, under its settings.
The only dynamic SQL is a COPY to a name that the server made; what it writes comes from a setting, not from its text.
"""  # noqa: E501  (a table)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from consensus.digest import blake2b
from supervisor.settings import OWN_ROLE, ROLE

SCHEMA: Final = "pg_replica"
MONITOR: Final = "pgr_monitor"
ADMIN: Final = "pgr_admin"
DIRECTORY: Final = "sql"
"""Below the run directory, beside pg_hba.conf."""
REQUESTS: Final = "requests"
ANSWERS: Final = "answers"
STATUS, HISTORY, CONFIG = "status.json", "history.json", "config.json"

VERSION: Final = 1
"""Raised with every change that an older pgr must not undo: of two versions in one cluster the newer functions stay."""
STALE_MS: Final = 3_000
"""A status that is older is told with a warning, and names no primary: the supervisor writes one each second."""
TAKE_MS: Final = 5_000
"""A request that was not taken by then is void, on both sides."""
ARGUMENT_BYTES_MAX: Final = 2_000
TIMEOUT_MAX_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an action, and what it is called in the admin protocol (admin.py)."""

    name: str
    type: type[str] | type[bool]
    field: str
    default: str = ""
    """As SQL; empty: it has to be given."""
    optional: bool = False
    """None is a value."""
    many: bool = False
    """The protocol takes a list; here it is of one."""


TO: Final = Argument("to", str, "to", "NULL", optional=True)
NODE: Final = Argument("node", str, "name")
DRY_RUN: Final = Argument("dry_run", bool, "dry_run", "false")
ACCEPT: Final = Argument("accept_data_loss", bool, "accept_data_loss", "false")


@dataclass(frozen=True, slots=True)
class Action:
    """A request of the admin protocol that can be made by SQL."""

    name: str
    """Of the function and of the request."""
    arguments: tuple[Argument, ...]
    sentence: str
    timeout: str = "1 minute"


ACTIONS: Final = (
    Action("switchover", (TO, DRY_RUN), "move the primary in a planned way, to the best standby or the one named"),
    Action("failover", (TO, ACCEPT, DRY_RUN), "have a primary where there is none; what is lost is to be accepted"),
    Action("pause", (), "nothing is done automatically, until resume()"),
    Action("resume", (), "what is done automatically is done again"),
    Action("restart", (replace(NODE, field="nodes", many=True),), "restart the Postgres of one node", "10 minutes"),
    Action("reinit", (NODE,), "rebuild one standby: a new copy of the primary, the old one is kept aside", "1 hour"),
)  # fmt: skip
BY_NAME: Final = {action.name: action for action in ACTIONS}


@dataclass(frozen=True, slots=True)
class Function:
    """One function. ``arguments`` as in CREATE FUNCTION; types alone identify it."""

    name: str
    arguments: str
    returns: str
    body: str
    grantee: str
    sentence: str
    language: str = "plpgsql"
    definer: bool = False
    types: str = ""

    @property
    def identity(self) -> str:
        """``pg_replica.switchover(text, boolean, interval)``."""
        return f"{SCHEMA}.{self.name}({self.types})"

    @property
    def definition(self) -> str:
        security = "SECURITY DEFINER" if self.definer else "SECURITY INVOKER"
        return (
            f"CREATE OR REPLACE FUNCTION {SCHEMA}.{self.name}({self.arguments}) RETURNS {self.returns}\n"
            f"LANGUAGE {self.language} VOLATILE {security} PARALLEL UNSAFE\n"
            f"SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on\n"
            f"AS $pgr$\n{self.body.strip()}\n$pgr$"
        )


_PLACE = f"regexp_replace(current_setting('hba_file'), '[^/]*$', '{DIRECTORY}/')"
_BYTES_MAX = 8 << 20
"""Of a file that is read; the history is bounded by the log."""


def _text_of(file: str) -> str:
    """SQL for the content of a file as text that this database's encoding can hold: it is ASCII, and escapes of what is
    beyond are replaced where jsonb could not convert them. chr(1) stands for two backslashes meanwhile."""
    read = f"pg_read_file(place || {file}, 0, {_BYTES_MAX}, true)"
    return (
        f"CASE WHEN getdatabaseencoding() = 'UTF8' THEN {read} ELSE"
        f" replace(regexp_replace(replace({read}, '\\\\', chr(1)), '\\\\u[0-9a-fA-F]{{4}}', '?', 'g'), chr(1), '\\\\')"
        " END"
    )


_DOCUMENT = f"""
DECLARE
  place CONSTANT text := {_PLACE};
  found jsonb := {_text_of(f"'{STATUS}'")};
  age_ms bigint;
BEGIN
  IF found IS NULL THEN
    RAISE EXCEPTION 'no pgr-supervise runs this Postgres' USING ERRCODE = 'PGR75',
      HINT = 'It has stopped, or this is a copy that something else has started.';
  END IF;
  age_ms := pg_replica._uptime_ms() - (found ->> 'uptime_ms')::bigint;
  IF age_ms < 0 OR age_ms > {STALE_MS} THEN
    RAISE WARNING 'pgr-supervise has not written for % s: this is what it knew then', round(age_ms / 1000.0)
      USING HINT = 'It hangs, or is gone; look at its log and at another node.';
  END IF;
  RETURN found || jsonb_build_object('age_ms', age_ms, 'fresh', age_ms BETWEEN 0 AND {STALE_MS});
END
"""

_STATUS = """
SELECT m ->> 'name', m ->> 'role', m ->> 'state', m ->> 'member', (m ->> 'timeline')::integer, (m ->> 'lsn')::pg_lsn,
  (m ->> 'replay_lsn')::pg_lsn, (m ->> 'lag_bytes')::bigint, (m ->> 'lag_s')::double precision, m ->> 'sync',
  nullif(m ->> 'upstream', ''), m ->> 'host', (m ->> 'pg_port')::integer, m ->> 'version', (m ->> 'connected')::boolean,
  (m ->> 'pending_restart')::boolean, (m ->> 'fenced')::boolean, m -> 'tags', m ->> 'reason',
  m ->> 'name' = d ->> 'node', (m ->> 'age_ms')::bigint + (d ->> 'age_ms')::bigint, (d ->> 'age_ms')::bigint
FROM pg_replica._document() AS d, jsonb_array_elements(d -> 'members') WITH ORDINALITY AS e(m, n)
ORDER BY n
"""

_PRIMARY = """
SELECT p ->> 'name', p ->> 'host', (p ->> 'port')::integer, (p ->> 'term')::bigint, (p ->> 'timeline')::integer,
  p ->> 'name' = d ->> 'node', (d ->> 'age_ms')::bigint
FROM pg_replica._document() AS d, LATERAL (SELECT d -> 'primary') AS e(p)
WHERE jsonb_typeof(p) = 'object' AND (d ->> 'fresh')::boolean
  AND (p ->> 'name' <> d ->> 'node' OR NOT pg_is_in_recovery())
"""

_EVENTS = """
SELECT nullif(e ->> 'at', '')::timestamptz, e ->> 'kind', (e ->> 'term')::bigint, (e ->> 'timeline')::integer,
  e ->> 'node', e ->> 'reason', (e ->> 'lsn')::pg_lsn, (e ->> 'gap_ms')::bigint, (e ->> 'bytes_salvaged')::bigint,
  e -> 'details'
FROM jsonb_array_elements(pg_replica._history()) WITH ORDINALITY AS x(e, n)
ORDER BY n
"""

_SETTINGS = """
SELECT s ->> 'name', s ->> 'value', nullif(s ->> 'unit', ''), s ->> 'default', s ->> 'source', s ->> 'needs',
  s ->> 'sentence'
FROM jsonb_array_elements(pg_replica._config()) WITH ORDINALITY AS x(s, n)
ORDER BY n
"""


def _file(name: str, key: str) -> str:
    """A function body that returns ``key`` of a file that is only written when it changes."""
    return f"""
DECLARE
  place CONSTANT text := {_PLACE};
  found jsonb;
BEGIN
  PERFORM pg_replica._document();
  found := {_text_of(f"'{name}'")};
  RETURN coalesce(found -> '{key}', '[]');
END
"""


# Names of this file alone are put into the text, no value of anybody.
_REQUEST = f"""
DECLARE
  place CONSTANT text := {_PLACE};
  file CONSTANT text := gen_random_uuid()::text || '.json';
  began_ms CONSTANT bigint := pg_replica._uptime_ms();
  timeout_ms bigint;
  said jsonb;
  taken boolean := false;
  line text;
  shown integer := 0;
  waited_ms bigint;
BEGIN
  IF action IS NULL OR arguments IS NULL OR length(action) > 40
    OR octet_length(arguments::text) > {ARGUMENT_BYTES_MAX} THEN
    RAISE EXCEPTION 'the arguments are missing or too long' USING ERRCODE = 'PGR64',
      HINT = 'Give the names of members.';
  END IF;
  IF timeout IS NULL OR timeout < interval '1 second' OR timeout > interval '{TIMEOUT_MAX_S} seconds' THEN
    RAISE EXCEPTION 'timeout is %', timeout USING ERRCODE = 'PGR64', HINT = 'Give one from a second to a day.';
  END IF;
  timeout_ms := extract(epoch FROM timeout) * 1000;
  IF NOT (pg_replica._document() ->> 'fresh')::boolean THEN
    RAISE EXCEPTION 'pgr-supervise does not answer, so nothing was asked for' USING ERRCODE = 'PGR75',
      HINT = 'Ask at another node.';
  END IF;
  PERFORM set_config('pgr.request', jsonb_build_object('format', 1, 'action', action, 'arguments', arguments,
    'timeout_ms', timeout_ms, 'until_ms', began_ms + {TAKE_MS}, 'role', session_user,
    'address', coalesce(host(inet_client_addr()), 'local'))::text, true);
  EXECUTE format('COPY (SELECT current_setting(%L)) TO %L WITH (FORMAT text, ENCODING %L)',
    'pgr.request', place || '{REQUESTS}/' || file, 'UTF8');
  PERFORM set_config('pgr.request', '', true);
  LOOP
    said := {_text_of(f"'{ANSWERS}/' || file")};
    taken := taken OR said IS NOT NULL;
    waited_ms := pg_replica._uptime_ms() - began_ms;
    FOR line IN SELECT * FROM jsonb_array_elements_text(said -> 'progress') OFFSET shown LOOP
      shown := shown + 1;
      RAISE NOTICE '%', line;
    END LOOP;
    EXIT WHEN said ->> 'state' = 'done';
    IF NOT taken AND waited_ms > {TAKE_MS} + 1000 THEN
      RAISE EXCEPTION 'pgr-supervise has not taken the request, and will not any more' USING ERRCODE = 'PGR75',
        HINT = 'Nothing was done; ask at another node.';
    END IF;
    IF waited_ms > timeout_ms + 15000 THEN
      RAISE EXCEPTION 'no word for % s of what was asked for', waited_ms / 1000 USING ERRCODE = 'PGR75',
        HINT = 'It may still be carried out: look at pg_replica.status() and pg_replica.history().';
    END IF;
    PERFORM pg_sleep(CASE WHEN waited_ms < 10000 THEN 0.02 ELSE 0.2 END);
  END LOOP;
  FOR line IN SELECT * FROM jsonb_array_elements_text(said -> 'warnings') LOOP
    RAISE WARNING '%', line;
  END LOOP;
  IF NOT (said ->> 'ok')::boolean THEN
    RAISE EXCEPTION USING MESSAGE = said ->> 'error', HINT = said ->> 'hint', ERRCODE = 'PGR' || (said ->> 'code');
  END IF;
  RETURN said -> 'result';
END
"""  # noqa: S608  # see above

_MEMBER_COLUMNS = (
    "TABLE (name text, role text, state text, member text, timeline integer, lsn pg_lsn, replay_lsn pg_lsn,"
    " lag_bytes bigint, lag_s double precision, sync text, upstream text, host text, port integer, version text,"
    " connected boolean, pending_restart boolean, fenced boolean, tags jsonb, reason text, here boolean,"
    " seen_ms bigint, age_ms bigint)"
)
_PRIMARY_COLUMNS = (
    "TABLE (name text, host text, port integer, term bigint, timeline integer, here boolean, age_ms bigint)"
)
_EVENT_COLUMNS = (
    "TABLE (at timestamptz, kind text, term bigint, timeline integer, node text, reason text, lsn pg_lsn,"
    " gap_ms bigint, bytes_salvaged bigint, details jsonb)"
)
_SETTING_COLUMNS = "TABLE (name text, value text, unit text, default_value text, source text, needs text, meaning text)"


def _reader(name: str, returns: str, body: str, sentence: str) -> Function:
    return Function(name, "", returns, body, MONITOR, sentence, language="sql")


def _asks(action: Action) -> Function:
    sql_type = {str: "text", bool: "boolean"}
    declared = [(f'"{a.name}"', sql_type[a.type], f" DEFAULT {a.default}" * bool(a.default)) for a in action.arguments]
    fields = ", ".join(f"'{a.name}', ${i}" for i, a in enumerate(action.arguments, 1))
    last = len(declared) + 1
    return Function(
        action.name,
        ", ".join([*(f"{n} {t}{d}" for n, t, d in declared), f"timeout interval DEFAULT '{action.timeout}'"]),
        "jsonb",
        f"SELECT {SCHEMA}._request('{action.name}', jsonb_build_object({fields}), ${last})",
        ADMIN,
        action.sentence,
        language="sql",
        types=", ".join([*(t for _, t, _ in declared), "interval"]),
    )


FUNCTIONS: Final = (
    Function(
        "_uptime_ms", "", "bigint",
        "SELECT (split_part(pg_read_file('/proc/uptime', 0, 100, false), ' ', 1)::numeric * 1000)::bigint",
        MONITOR, "the clock that ages are counted by: it neither jumps nor stands still", language="sql", definer=True,
    ),
    Function("_document", "", "jsonb", _DOCUMENT, MONITOR, "what pgr-supervise last knew of the cluster", definer=True),
    Function("_history", "", "jsonb", _file(HISTORY, "history"), MONITOR, "the events of the log", definer=True),
    Function("_config", "", "jsonb", _file(CONFIG, "settings"), MONITOR, "the cluster-wide settings", definer=True),
    _reader("status", _MEMBER_COLUMNS, _STATUS, "one row for each member"),
    _reader("primary", _PRIMARY_COLUMNS, _PRIMARY, "the primary that is open to clients; no row: none is known"),
    _reader("history", _EVENT_COLUMNS, _EVENTS, "every change of primary and what else happened, oldest first"),
    _reader(
        "explain", "SETOF text", "SELECT string_to_table(pg_replica._document() ->> 'explain', chr(10))",
        "why the cluster is in this state, who would win an election, what to do: the page of `pgr explain`",
    ),
    _reader("config", _SETTING_COLUMNS, _SETTINGS, "the cluster-wide settings, as `pgr config show`"),
    Function(
        "_request", "action text, arguments jsonb, timeout interval", "jsonb", _REQUEST, ADMIN,
        "hands a request to pgr-supervise and waits for the answer", definer=True, types="text, jsonb, interval",
    ),
    *(_asks(action) for action in ACTIONS),
)  # fmt: skip

MARK: Final = f"pgr functions {VERSION} " + blake2b(
    "".join(f.definition + f.grantee for f in FUNCTIONS).encode(), digest_size=8
).hexdigest()  # fmt: skip
"""Comment on the schema: which functions these are."""


def is_current(mark: str | None, functions: int) -> bool:
    """Is there nothing to install? ``mark``: the comment of the schema that is there; ``functions``: how many it has of
    ours. Functions of a newer pgr stay."""
    words = (mark or "").split(" ")
    if len(words) != 4 or words[:2] != ["pgr", "functions"] or not words[2].isdigit():
        return False
    return int(words[2]) > VERSION or (mark == MARK and functions == len(FUNCTIONS))


LOOK: Final = (
    "SELECT obj_description(n.oid, 'pg_namespace'), count(p.oid)::text,"
    " coalesce(string_agg(p.oid::regprocedure::text, ';' ORDER BY p.oid), '')"
    " FROM pg_namespace n LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND pg_get_userbyid(p.proowner) = 'pgr'"
    " WHERE n.nspname = 'pg_replica' GROUP BY n.oid"
)
"""Mark, number of functions, and which; no row: there is no such schema."""

LACKS_ROLES: Final = f"SELECT to_regrole('{MONITOR}') IS NULL OR to_regrole('{ADMIN}') IS NULL"
ROLES: Final = "".join(
    f"DO $pgr$BEGIN IF to_regrole('{role}') IS NULL THEN CREATE ROLE {role} NOLOGIN;"
    f" COMMENT ON ROLE {role} IS '{OWN_ROLE}'; END IF; END$pgr$;\n"
    for role in (MONITOR, ADMIN)
) + f"GRANT {MONITOR} TO {ADMIN};\n"  # fmt: skip
"""Where one is missing. An existing role is left as it is."""


def install(former: str = "", *, anew: bool = False) -> str:
    """One transaction that puts the schema there, or replaces it.

    ``former``: the third column of `LOOK`. Of these functions, which are ours, those that there are no more are dropped
    first; ``anew``: all of them, as one may return something else by now. Nothing of others is: no CASCADE.
    """
    wanted = {f.identity.replace(", ", ",") for f in FUNCTIONS}
    names = [name for name in former.split(";") if name and (anew or name.replace('"', "") not in wanted)]
    drops = [f"DROP FUNCTION {name}" for name in names]
    drops.reverse()
    statements = [
        "BEGIN",
        "SET LOCAL allow_system_table_mods = on",
        "SET LOCAL synchronous_commit = local",  # the next primary puts it there again if need be
        f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
        f"ALTER SCHEMA {SCHEMA} OWNER TO {ROLE}",
        f"REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC",
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {MONITOR}, {ADMIN}",
        *drops,
    ]
    for f in FUNCTIONS:
        words = f.sentence.replace("'", "''")
        statements += [
            f.definition,
            f"ALTER FUNCTION {f.identity} OWNER TO {ROLE}",
            f"REVOKE ALL ON FUNCTION {f.identity} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {f.identity} TO {f.grantee}",
            f"COMMENT ON FUNCTION {f.identity} IS '{words}'",
        ]
    statements += [f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'", "COMMIT"]
    return ";\n".join(statements)
