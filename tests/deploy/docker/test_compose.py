"""docker-compose.yml: valid by the Compose specification, complete, and of one mind with what it mounts."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import compose
from tests.compose import MissingVariable, example_variables

ROOT = Path(__file__).parents[3]
SECRETS = ("REDIS_PASSWORD", "RAY_AUTH_TOKEN", "GRAFANA_PASSWORD")
FILLED_IN = {**example_variables(), **{name: f"secret-{name.lower()}" for name in SECRETS}}
PROFILES = ("cpu", "gpu")
SERVICES = [(profile, name) for profile in PROFILES for name in compose.services(FILLED_IN, profile)]
every_service = pytest.mark.parametrize(("profile", "name"), SERVICES)


def service(profile: str, name: str) -> dict[str, Any]:
    return compose.services(FILLED_IN, profile)[name]


def mounts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(source, target) of a service's volumes."""
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in found.get("volumes", [])]


def test_the_compose_specification_accepts_the_file() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="check-jsonschema is not installed")
    builtin = pytest.importorskip("check_jsonschema.builtin_schemas", reason="check-jsonschema is not installed")
    schema = builtin.get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(compose.raw(), schema)
    jsonschema.validate(compose.load(FILLED_IN), schema)
    broken = compose.raw()
    broken["services"]["redis"]["comand"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(broken, schema)


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_password_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(MissingVariable, match=f"set {name} in .env"):
        compose.load({**FILLED_IN, name: ""})


def test_the_example_holds_no_password() -> None:
    assert {name for name, value in example_variables().items() if not value} == set(SECRETS)


def test_every_variable_is_explained_and_every_explained_one_used() -> None:
    used = compose.variables_in(compose.FILE.read_text())
    # Read by Docker itself.
    assert set(used) | {"COMPOSE_PROFILES"} == set(example_variables())
    lines = (ROOT / ".env.example").read_text().splitlines()
    ports = {"GRAFANA_PORT", "PROMETHEUS_PORT", "RAY_DASHBOARD_PORT"}
    bare = {
        line.split("=")[0] for before, line in itertools.pairwise(lines) if line[:1].isalpha() and before[:1] != "#"
    }
    assert bare == ports, "a line above each says what it is; the ports are explained together"


def test_the_example_shows_the_defaults() -> None:
    for name, (kind, default) in compose.variables_in(compose.FILE.read_text()).items():
        assert kind in "-?" and (kind == "?" or example_variables()[name] == default), name


@every_service
def test_every_service_has_a_health_check_a_restart_policy_and_a_pinned_image(profile: str, name: str) -> None:
    found = service(profile, name)
    check = found["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL") and {"interval", "timeout", "retries", "start_period"} <= set(check)
    assert found["restart"]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-\w+)?", found["image"]), found["image"]


@every_service
def test_services_start_when_those_they_need_are_healthy(profile: str, name: str) -> None:
    for needed, how in service(profile, name).get("depends_on", {}).items():
        assert how["condition"] == "service_healthy" and needed in compose.services(FILLED_IN, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_all_parts_and_an_order_to_start_them_in(profile: str) -> None:
    order = compose.start_order(compose.services(FILLED_IN, profile))
    names = [name.removesuffix("-gpu") for name in order]
    assert sorted(names) == ["grafana", "learner", "prometheus", "ray-head", "redis"]
    assert names.index("learner") > max(names.index("redis"), names.index("ray-head"))
    assert names.index("grafana") > names.index("prometheus")


def test_the_gpu_profile_differs_in_the_image_the_devices_and_the_names_alone() -> None:
    for name in ("ray-head", "learner"):
        cpu, gpu = service("cpu", name), service("gpu", f"{name}-gpu")
        assert gpu["networks"]["default"]["aliases"] == [name]
        devices = gpu.pop("deploy")["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        for key in ("image", "build", "profiles", "networks", "depends_on"):
            cpu.pop(key, None), gpu.pop(key, None)
        assert cpu == gpu


@every_service
def test_what_is_mounted_exists_and_volumes_are_declared(profile: str, name: str) -> None:
    for source, _ in mounts(service(profile, name)):
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in compose.raw()["volumes"], source


@every_service
def test_ports_are_published_on_loopback_and_by_three_services_alone(profile: str, name: str) -> None:
    ports = service(profile, name).get("ports", [])
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert bool(ports) == (name.removesuffix("-gpu") in ("grafana", "prometheus", "ray-head"))


@every_service
def test_no_service_gets_a_secret_that_is_not_its_own(profile: str, name: str) -> None:
    text = yaml.safe_dump(service(profile, name))
    has = {secret for secret in SECRETS if FILLED_IN[secret] in text}
    part = name.removesuffix("-gpu")
    own = {"redis": {"REDIS_PASSWORD"}, "grafana": {"GRAFANA_PASSWORD"}, "ray-head": {"RAY_AUTH_TOKEN"}}
    assert has == own.get(part, {"REDIS_PASSWORD", "RAY_AUTH_TOKEN"} if part == "learner" else set())


@every_service
def test_no_secret_is_on_a_command_line(profile: str, name: str) -> None:
    found = service(profile, name)
    words = shlex.join([*map(str, found.get("command", [])), *map(str, found["healthcheck"]["test"])])
    assert not any(FILLED_IN[secret] in words for secret in SECRETS)


def test_settings_in_the_environment_are_settings() -> None:
    from common.config_loading import known_keys

    names = [name for name in service("cpu", "learner")["environment"] if name.startswith("AMORTIS_")]
    assert {name.removeprefix("AMORTIS_").replace("__", ".").lower() for name in names} <= set(known_keys())


def test_the_file_of_settings_reaches_the_actors_too() -> None:
    files = [{"path": "amortis.env", "required": False}]
    found = {
        profile: [name for name, one in compose.services(FILLED_IN, profile).items() if "env_file" in one]
        for profile in PROFILES
    }
    assert found == {"cpu": ["ray-head", "learner"], "gpu": ["ray-head-gpu", "learner-gpu"]}
    assert all(service(profile, name)["env_file"] == files for profile, names in found.items() for name in names)


def test_addresses_inside_are_those_of_services_that_listen_there() -> None:
    environment = service("cpu", "learner")["environment"]
    assert environment["RAY_HEAD"] == "ray-head:6379" and "--port=6379" in service("cpu", "ray-head")["command"]
    assert environment["AMORTIS_REDIS__URL"].endswith("@redis:6379/0")
    assert f":{environment['AMORTIS_METRICS__PORT']}/" in service("cpu", "learner")["healthcheck"]["test"][-1]


def test_published_ports_are_those_that_the_services_listen_on() -> None:
    assert "--dashboard-port=8265" in service("cpu", "ray-head")["command"]
    for name, port in (("ray-head", 8265), ("prometheus", 9090), ("grafana", 3000)):
        found = service("cpu", name)
        assert found["ports"] == [f"127.0.0.1:{port}:{port}"] and f":{port}/" in found["healthcheck"]["test"][-1]


def test_prometheus_finds_the_run_and_ray_under_the_names_that_the_services_have() -> None:
    path = ROOT / "deploy" / "monitoring" / "prometheus" / "prometheus.yml"
    settings = yaml.safe_load(path.read_text())
    sources = [one for job in settings["scrape_configs"] for one in job.get("http_sd_configs", [])]
    assert {source["url"].split("/")[2] for source in sources} == {"learner:9400", "ray-head:8265"}
    secrets = {f"/run/secrets/{name}" for name in service("cpu", "prometheus")["secrets"]}
    assert {one["authorization"]["credentials_file"] for one in sources if "authorization" in one} <= secrets
    assert ("./deploy/monitoring/prometheus", "/etc/prometheus") in mounts(service("cpu", "prometheus"))
    assert all(not Path(pattern).is_absolute() for pattern in settings["rule_files"])
    assert compose.raw()["secrets"]["ray_token"] == {"environment": "RAY_AUTH_TOKEN"}


def test_grafana_opens_on_the_overview_and_finds_prometheus() -> None:
    folder = ROOT / "deploy" / "monitoring" / "grafana"
    found = service("cpu", "grafana")
    inside = {target: ROOT / source for source, target in mounts(found)}
    environment = found["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true" and environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (inside[str(home.parent)] / home.name).is_file()
    assert "/etc/grafana/provisioning" in inside
    texts = [path.read_text() for path in sorted((folder / "provisioning").rglob("*.y*ml"))]
    provisioned = [yaml.safe_load(text) for text in texts]
    sources = [source for entry in provisioned for source in entry.get("datasources", [])]
    assert [source["url"] for source in sources if source["type"] == "prometheus"] == ["http://prometheus:9090"]
    paths = {one["options"]["path"] for entry in provisioned for one in entry.get("providers", [])}
    assert paths and paths <= set(inside)


def test_the_images_carry_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {service(profile, name)["image"] for profile, name in SERVICES if "build" in service(profile, name)}
    assert images == {f"amortis:{version}-cpu", f"amortis:{version}-gpu"}
