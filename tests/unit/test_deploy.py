"""What deploy/ holds names only what there is: metrics, paths, variables, files, ports, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # no stubs for the sake of one test

from supervisor.config import load
from supervisor.errors import ExitCode
from supervisor.health import PATHS
from supervisor.metrics import METRICS
from supervisor.options import OPTIONS, Facts

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KNOWN = {metric.name for metric in METRICS}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "pgr.json").read_text(encoding="utf-8"))


def named(text: str) -> set[str]:
    return set(re.findall(r"\bpgr_[a-z_]+", text))


def expressions() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found += [query["query"] for query in DASHBOARD["templating"]["list"]]
    return found + [note["expr"] for note in DASHBOARD["annotations"]["list"]]


def test_every_metric_of_the_dashboard_is_one_of_ours() -> None:
    for expression in expressions():
        assert named(expression) <= KNOWN, expression
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(named(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"])


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_of_the_alerts_is_one_of_ours() -> None:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    rules = re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", text)
    assert len(rules) == text.count("- alert:") > 10
    for name, expression in rules:
        assert named(expression) <= KNOWN, name
        assert named(expression) or "up{" in expression, name
        assert expression.count("(") == expression.count(")"), name
    assert all(f"rule_files:\n  - {name}\n" in (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
               for name in ("alerts.yml",))  # fmt: skip


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("haproxy*.cfg")), ids=lambda p: p.name)
def test_haproxy_asks_for_paths_that_are_answered(path: Path) -> None:
    asked = re.findall(r"option httpchk (?:HEAD|OPTIONS|GET) (/[^\s?]*)", path.read_text(encoding="utf-8"))
    assert asked
    assert set(asked) <= PATHS


# -- image, compose, systemd, Kubernetes -------------------------------------------------------------------------------

PYPROJECT = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES: list[dict[str, Any]] = list(
    yaml.safe_load_all((DEPLOY / "kubernetes" / "pgr.yaml").read_text(encoding="utf-8"))
)
UNIT = DEPLOY / "systemd" / "pgr.service"
KNOWN_ENV = {option.env for option in OPTIONS} | {"PGR_SUPERUSER_PASSWORD_FILE", "POSTGRES_PASSWORD_FILE"}


def image_env() -> dict[str, str]:
    (text,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    words = text.replace("\\\n", " ").split()
    return dict(word.split("=", 1) for word in words)


def env_file() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "node.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def one_of(kind: str) -> dict[str, Any]:
    (found,) = [each for each in KUBERNETES if each["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = one_of("StatefulSet")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return dict(only)


def nodes() -> dict[str, tuple[str, dict[str, str]]]:
    """Which file and node -> host name and environment there."""
    found = {"systemd a": ("host-a", env_file())}
    for name, service in COMPOSE["services"].items():
        found[f"compose {name}"] = (service["hostname"], image_env() | service["environment"])
    stateful = one_of("StatefulSet")
    for number in range(stateful["spec"]["replicas"]):
        env = image_env() | {each["name"]: each["value"] for each in container()["env"]}
        found[f"kubernetes {number}"] = (f"{stateful['metadata']['name']}-{number}", env)
    return found


@pytest.mark.parametrize("which", nodes())
def test_every_node_has_a_configuration_that_stands(which: str) -> None:
    """As pgr-supervise would read it there: known variables, valid values, itself among its peers, and dialable."""
    hostname, env = nodes()[which]
    assert set(env) <= KNOWN_ENV
    config = load({}, env, None, None, Facts(hostname, "/"))
    assert config.warnings == ()
    mine = [peer.address for peer in config.peers if peer.name == config.name]
    assert mine == [config.advertise]
    assert len(config.peers) == 3
    for address in (config.advertise, config.pg_advertise, config.http_advertise):
        assert address is not None
        assert not address.is_wildcard
        assert address.host == mine[0].host
    assert config.cluster_key is not None


def test_the_nodes_of_a_file_agree_about_their_peers() -> None:
    for kind in ("compose", "kubernetes"):
        configs = [load({}, env, None, None, Facts(host, "/")) for n, (host, env) in nodes().items() if kind in n]
        assert len({config.peers for config in configs}) == 1
        assert {config.name for config in configs} == {peer.name for peer in configs[0].peers}


def test_the_image_starts_a_command_of_ours_with_ports_that_it_tells() -> None:
    (entry,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', DOCKERFILE, re.MULTILINE)
    assert Path(entry).name in PYPROJECT["project"]["scripts"]
    assert f"/opt/pgr/bin/{Path(entry).name}" in DOCKERFILE, "pip makes it there, and the link leads to it"
    (exposed,) = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    config = load({}, image_env() | {"PGR_CLUSTER_KEY_FILE": "/k", "PGR_ADVERTISE": "x:1"}, None, None, Facts("a", "/"))
    assert config.http is not None
    assert {int(port) for port in exposed.split()} == {config.pg_port, config.listen.port, config.http.port}
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((DEPLOY.parent / source).exists() for source in sources.split())
    needed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert all(f"COPY {directory.partition('/')[0]} " in DOCKERFILE for directory in needed)
    (volume,) = re.findall(r"^VOLUME (.+)$", DOCKERFILE, re.MULTILINE)
    assert config.data.parent == Path(volume)
    assert "/liveness" in PATHS
    assert f":{config.http.port}/liveness" in DOCKERFILE


def test_what_compose_mounts_is_there_and_is_where_the_image_looks() -> None:
    for service in COMPOSE["services"].values():
        (volume,) = service["volumes"]
        name, _, place = volume.partition(":")
        assert name in COMPOSE["volumes"]
        assert Path(image_env()["PGR_DATA"]).parent == Path(place)
        env = image_env() | service["environment"]
        secrets = {f"/run/secrets/{name}" for name in service["secrets"]}
        assert {env["PGR_CLUSTER_KEY_FILE"], env["POSTGRES_PASSWORD_FILE"]} == secrets
        assert set(service["secrets"]) <= set(COMPOSE["secrets"])
        assert {port.rpartition(":")[2] for port in service["ports"]} <= {"5432", "8008"}
        build = service["build"]
        named = DEPLOY / "docker" / build["context"] / build["dockerfile"]
        assert named.resolve() == DEPLOY / "docker" / "Dockerfile"
    ports = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len({port.rpartition(":")[0] for port in ports}) == len(ports)


def test_kubernetes_probes_what_is_answered_and_mounts_what_is_read() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"postgres": 5432, "raft": 7400, "http": 8008}
    probes = {name: container()[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "livenessProbe": "/liveness", "readinessProbe": "/readiness",
    }  # fmt: skip
    assert all(probe["path"] in PATHS and probe["port"] in ports for probe in probes.values())
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container()["volumeMounts"]}
    given = {each["name"]: Path(each["value"]) for each in container()["env"]}
    assert mounts["data"] in given["PGR_DATA"].parents, "below the volume, whose own mode is the driver's"
    assert given["PGR_CLUSTER_KEY_FILE"].parent == given["PGR_SUPERUSER_PASSWORD_FILE"].parent == mounts["secret"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    claims = [claim["metadata"]["name"] for claim in one_of("StatefulSet")["spec"]["volumeClaimTemplates"]]
    assert set(mounts) == {*volumes, *claims}
    # The key may be read by its group and by nobody else (consensus/keys.py).
    assert volumes["secret"]["secret"]["defaultMode"] & 0o037 == 0


def test_kubernetes_objects_fit_each_other() -> None:
    stateful = one_of("StatefulSet")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    selectors = [one_of(kind)["spec"]["selector"]["matchLabels"] for kind in ("StatefulSet", "PodDisruptionBudget")]
    services = {each["metadata"]["name"]: each["spec"] for each in KUBERNETES if each["kind"] == "Service"}
    assert all(selector == labels for selector in [*selectors, *(spec["selector"] for spec in services.values())])
    headless = services[stateful["spec"]["serviceName"]]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True, "peers must find each other before any is ready"
    assert stateful["spec"]["podManagementPolicy"] == "Parallel", "the founding needs all of them"
    (env,) = [each["value"] for each in container()["env"] if each["name"] == "PGR_PEERS"]
    name = stateful["metadata"]["name"]
    hosts = {f"{name}-{n}.{stateful['spec']['serviceName']}" for n in range(stateful["spec"]["replicas"])}
    assert {peer.partition("=")[2].partition(":")[0] for peer in env.split(",")} == hosts


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    (start,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert Path(start).name in PYPROJECT["project"]["scripts"]
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.+)$", text, re.MULTILINE)
    assert [ExitCode(int(code)) for code in codes.split()] == [ExitCode.USAGE, ExitCode.MISSING, ExitCode.REFUSED]
    assert f"EnvironmentFile=/etc/pgr/{(DEPLOY / 'systemd' / 'node.env').name}" in text
    assert env_file()["PGR_DATA"] == "/var/lib/pgr", "as StateDirectory=pgr says"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: only what we can read ourselves was checked")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(start, "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(text.replace(start, "/bin/true").replace("KillMode=mixed", "KillMode=mixt"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert "kill mode" in done.stderr, "it does look"
