"""infra/k8s says what the profile, the images and Ray's own start say."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import drain_node
from ray.serve._private.build_app import build_app as build_serve_app

from deployments.app import build_app
from deployments.environment import FAST_PATH, serve_environment
from deployments.proxy import BINARY_VARIABLE
from rag.config import Settings, load_settings
from rag.serve_settings import StageServing
from tests.k8s_manifests import (
    BUILDS,
    INGEST,
    K8S,
    ROOT,
    SERVICE,
    Manifest,
    applied,
    build,
    environment,
    find,
    pod_templates,
    ray_containers,
    walk,
)

GPU_FILE = ROOT / "infra" / "serve" / "gpu.yaml"
SERVICES = [name for name in BUILDS if name != INGEST]
# Where `rag serve` keeps apart what runs beside it on one machine. In a pod of its own Ray's defaults are right; and
# there its load balancer has to notice that a pod goes.
ONE_MACHINE = re.compile(
    r"RAY_SERVE_HAPROXY_(\w+_PATH|CONFIG_FILE_LOC|SERVER_STATE_\w+|\w+_PORT)"
    r"|RAY_SERVE_(DIRECT_INGRESS|FALLBACK_PROXY)_\w+"
)


@pytest.fixture(autouse=True)
def without_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RAG_", "RAY_SERVE", "VLLM"))]:
        monkeypatch.delenv(name)


def settings_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the head of a service reads, in which Serve builds the application."""
    manifests = build(name)
    (head,) = [one for one in ray_containers(manifests) if one["name"] == "ray-head"]
    for variable, value in environment(head, manifests).items():
        monkeypatch.setenv(variable, value)
    return load_settings(**yaml.safe_load(GPU_FILE.read_text(encoding="utf-8"))["applications"][0]["args"])


def stages(settings: Settings) -> list[StageServing]:
    return [stage for _, stage in settings.serve if isinstance(stage, StageServing)]


def groups(name: str) -> dict[str, Manifest]:
    cluster = find(build(name), "RayService")["spec"]["rayClusterConfig"]
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def limits(group: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return found


# --- the application ---


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_deploys_the_profiles_own_file(name: str) -> None:
    assert find(build(name), "RayService")["spec"]["serveConfigV2"] == GPU_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BUILDS)
def test_every_ray_container_starts_as_rag_serve_starts_ray(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = applied(name)
    settings = load_settings(profile="gpu")
    with monkeypatch.context() as apart:
        apart.setattr(os, "environ", {})
        with serve_environment(settings):
            wanted = {key: value for key, value in os.environ.items() if not ONE_MACHINE.fullmatch(key)}
    assert FAST_PATH.items() <= wanted.items()
    containers = ray_containers(manifests)
    assert len(containers) == (6 if name == INGEST else 3)
    for container in containers:
        found = environment(container, manifests)
        assert found[BINARY_VARIABLE] == "/usr/local/bin/rag-haproxy"
        assert {key: value for key, value in found.items() if key in wanted} == wanted
        # Nothing of Ray's and vLLM's that `rag serve` would not set.
        assert {key for key in found if key.startswith(("RAY", "VLLM"))} <= {*wanted, BINARY_VARIABLE}


def test_the_image_has_the_proxy_where_it_is_looked_for() -> None:
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert "test -x /usr/local/bin/rag-haproxy" in dockerfile.partition(" AS gpu")[2]


@pytest.mark.parametrize("name", SERVICES)
def test_serve_takes_the_graph_that_the_settings_make(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(name, monkeypatch)
    deployments = build_serve_app(build_app(settings), name="rag").deployments
    assert {one.name for one in deployments} >= {"Orchestrator", "Embedder", "Retriever", "Reranker", "Generator"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_the_stages_ask_for_fits_the_pods_that_there_always_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, workers = settings_of(name, monkeypatch), groups(name)
    assert set(workers) == {"cpu", "gpu"}
    on_gpus = [stage for stage in stages(settings) if stage.num_gpus]
    assert on_gpus == [settings.serve.reranker, settings.serve.generator]
    # A stage of the one kind never fits a pod of the other.
    assert [stage.num_cpus for stage in on_gpus] == [0, 0]
    assert workers["gpu"]["rayStartParams"]["num-cpus"] == "0"
    assert all(stage.num_cpus for stage in stages(settings) if not stage.num_gpus)
    # Each replica whole in a pod: as many of them in each as there are pods for.
    pods = workers["gpu"]["minReplicas"]
    assert {stage.replicas for stage in on_gpus} == {pods}
    assert sum(stage.num_gpus for stage in on_gpus) <= limits(workers["gpu"])["nvidia.com/gpu"]
    asked = sum(stage.num_cpus * stage.replicas for stage in stages(settings))
    assert asked <= workers["cpu"]["minReplicas"] * int(limits(workers["cpu"])["cpu"])


@pytest.mark.parametrize("name", SERVICES)
def test_wherever_serve_puts_the_rerankers_every_gpu_has_room_for_an_engine(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = settings_of(name, monkeypatch).serve
    together = serving.reranker.max_replicas_per_node or serving.reranker.max_replicas or serving.reranker.replicas
    taken = together * serving.reranker.num_gpus + serving.generator.num_gpus
    assert taken <= limits(groups(name)["gpu"])["nvidia.com/gpu"]


@pytest.mark.parametrize("name", SERVICES)
def test_there_are_gpus_for_as_many_engines_as_load_may_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = settings_of(name, monkeypatch).serve.generator
    assert groups(name)["gpu"]["maxReplicas"] == (generator.max_replicas or generator.replicas)


@pytest.mark.parametrize("name", SERVICES)
def test_the_head_takes_no_work(name: str) -> None:
    service = find(build(name), "RayService")["spec"]
    assert service["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert service["excludeHeadPodFromServeSvc"] is True


def test_a_bulk_ingest_embeds_on_its_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = build(INGEST)
    for container in ray_containers(manifests):
        for variable, value in environment(container, manifests).items():
            monkeypatch.setenv(variable, value)
        settings = load_settings(profile="gpu")
        assert (settings.embedder.device, settings.serve.embedder.num_gpus) == ("cuda", 1)
        assert settings.ingest.ray_documents == 1
    cluster = find(manifests, "RayJob")["spec"]["rayClusterSpec"]
    readers, embedders = cluster["workerGroupSpecs"]
    assert "nvidia.com/gpu" not in limits(readers)
    assert limits(embedders)["nvidia.com/gpu"] == settings.serve.embedder.num_gpus
    assert embedders["maxReplicas"] == settings.ingest.ray_embedders
    assert int(limits(embedders)["cpu"]) >= settings.embedder.threads


# --- versions ---


@pytest.mark.parametrize("name", BUILDS)
def test_ray_is_the_locked_one(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (locked,) = [one.partition("==")[2] for one in project["dependencies"] if one.startswith("ray[")]
    assert {one["rayVersion"] for one in walk(applied(name)) if "rayVersion" in one} == {locked}


def test_images_are_tagged_and_milvus_is_the_one_of_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "infra" / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    images = {one["image"] for one in walk(applied(INGEST)) if isinstance(one.get("image"), str)}
    assert compose["services"]["milvus"]["image"] in images
    assert len(images) == 3, "the service and the bulk ingest are of one image"
    assert [one for one in images if not re.search(r":[\w.-]*\d+\.\d+\.\d+", one)] == []


# --- pods ---


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_unprivileged_bounded_and_watched(name: str) -> None:
    pods = [one["spec"] for manifest in applied(name) for one in pod_templates(manifest)]
    assert len(pods) == (8 if name == INGEST else 4)
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            if container["name"] != "ray-job-submitter":
                assert {"readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("name", BUILDS)
def test_ray_can_write_where_it_writes_and_its_objects_fit_in_memory(name: str) -> None:
    units = {"Mi": 2**20, "Gi": 2**30}
    for group in (one for one in walk(applied(name)) if "rayStartParams" in one):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert {mounted[path] for path in ("/tmp", "/home/rag", "/dev/shm")} <= volumes.keys()
        memory = volumes[mounted["/dev/shm"]]["emptyDir"]
        size = int(memory["sizeLimit"][:-2]) * units[memory["sizeLimit"][-2:]]
        assert memory["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < size


@pytest.mark.parametrize("name", SERVICES)
def test_milvus_can_write_to_a_volume_that_is_new(name: str) -> None:
    # It is root's with mode 0755, Milvus is not root, and the operator's pods have no fsGroup; an emptyDir is open.
    manifests = build(name)
    milvus = find(manifests, "Milvus")["spec"]["components"]
    assert "runAsNonRoot" not in milvus, "the operator would make the user 1000, and the image's is another one"
    assert find(manifests, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    claimed = [one for one in walk(milvus) if any("ephemeral" in volume for volume in one.get("volumes", []))]
    assert len(claimed) == 3
    for component in claimed:
        (mount,) = component["volumeMounts"]
        (opener,) = component["initContainers"]
        assert opener["command"] == ["chmod", "0777", mount["mountPath"]]
        assert opener["volumeMounts"] == [mount]
        assert opener["image"] == milvus["image"]
        security = opener["securityContext"]
        assert (security["runAsUser"], security["allowPrivilegeEscalation"]) == (0, False)
        assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_ends_later_than_the_longest_generation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = settings_of(name, monkeypatch).deadlines
    service = find(build(name), "RayService")["spec"]
    longest_s = deadlines.generate_s + 5  # as build_app's graceful_shutdown_timeout_s
    assert service["rayClusterDeletionDelaySeconds"] > deadlines.total_s + 5
    for group in groups(name).values():
        pod = group["template"]["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        slept_s = int(re.findall(r"; sleep (\d+)$", command)[0])
        drained_s = int(re.findall(r"--deadline-remaining-seconds (\d+)", command)[0])
        assert slept_s > longest_s
        assert slept_s + longest_s < drained_s < pod["terminationGracePeriodSeconds"]


def test_ray_has_the_command_that_drains_a_node() -> None:
    # It is hidden and may change; without --node-id it means the node that it is called on.
    (command,) = {one["preStop"]["exec"]["command"][-1] for one in walk(build(SERVICE)) if "preStop" in one}
    options = {name: one for one in drain_node.params for name in one.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= options.keys()
    assert {name for name, one in options.items() if one.required} <= set(re.findall(r"--[a-z-]+", command))
    assert re.findall(r"--reason (\w+)", command)[0] in options["--reason"].type.choices


def test_questions_come_before_bulk_ingests() -> None:
    manifests = applied(INGEST)
    serving, batch = (find(manifests, "PriorityClass", name) for name in ("rag-serving", "rag-batch"))
    assert serving["value"] > 0 > batch["value"]
    assert batch["preemptionPolicy"] == "Never"
    for kind, priority in (("RayService", "rag-serving"), ("RayJob", "rag-batch")):
        used = {one["priorityClassName"] for one in walk(find(manifests, kind)) if "priorityClassName" in one}
        assert used == {priority}


# --- the rest ---


def test_a_budget_for_rays_pods_counts_pods() -> None:
    # Their owner has no `scale`: Kubernetes then takes a whole number in minAvailable, and nothing else.
    ray = {"head", "cpu-worker", "gpu-worker"}
    for budget in (one["spec"] for one in build(SERVICE) if one["kind"] == "PodDisruptionBudget"):
        if budget["selector"]["matchLabels"]["rag-role"] in ray:
            ray.remove(budget["selector"]["matchLabels"]["rag-role"])
            assert budget.keys() - {"selector"} == {"minAvailable"}
            assert isinstance(budget["minAvailable"], int)
    assert ray == set()


def test_no_pod_is_counted_by_a_third() -> None:
    assert [one["kind"] for one in applied(INGEST) if "Autoscaler" in one["kind"]] == []
    clusters = [one for one in walk(applied(INGEST)) if "workerGroupSpecs" in one]
    assert [one["enableInTreeAutoscaling"] for one in clusters] == [True, True]


def test_the_ingress_waits_and_takes_as_much_as_the_service() -> None:
    settings = load_settings(profile="gpu")
    ingress = find(build(SERVICE), "Ingress", "rag-api")["metadata"]["annotations"]
    assert int(ingress["nginx.org/proxy-read-timeout"].removesuffix("s")) > settings.deadlines.max_s
    assert int(ingress["nginx.org/client-max-body-size"].removesuffix("m")) * 2**20 == settings.serve.max_upload_bytes
    assert ingress["nginx.org/basic-auth-secret"]


def test_both_doors_ask_who_is_there() -> None:
    manifests = build(SERVICE)
    for ingress in (one for one in manifests if one["kind"] == "Ingress"):
        hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
        assert hosts == {host for one in ingress["spec"]["tls"] for host in one["hosts"]}
    assert find(manifests, "RayService")["spec"]["rayClusterConfig"]["authOptions"]["mode"] == "token"


def test_everything_is_denied_that_is_not_allowed() -> None:
    spec = find(build(SERVICE), "NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_secrets_are_named_and_never_written() -> None:
    for name in BUILDS:
        manifests = applied(name)
        assert [one for one in manifests if one["kind"] == "Secret"] == []
        for variable in (one for one in walk(manifests) if "value" in one and "name" in one):
            assert not re.search(r"PASSWORD|TOKEN$|SECRET|KEY", str(variable["name"])), variable


def test_spot_is_taken_with_on_demand_behind_it() -> None:
    pool = find(build(SERVICE), "NodePool")["spec"]["template"]["spec"]
    requirements = {one["key"]: one["values"] for one in pool["requirements"]}
    assert requirements["karpenter.sh/capacity-type"] == ["spot", "on-demand"]


def test_every_manifest_is_built_by_something() -> None:
    files = {path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml"}
    named = set()
    for path in K8S.rglob("kustomization.yaml"):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = [*given.get("resources", []), *given.get("configurations", [])]
        named |= {(path.parent / one).resolve() for one in listed if one.endswith(".yaml")}
    assert files == named


@pytest.mark.parametrize("name", [name for name in BUILDS if name.startswith("overlays/")])
def test_every_patch_and_image_of_an_overlay_hits_something(name: str) -> None:
    # kustomize passes over a patch whose target is not there, and over an image that nobody has.
    given = yaml.safe_load((BUILDS[name] / "kustomization.yaml").read_text(encoding="utf-8"))
    base, result = build("base"), build(name)
    for target in (one["target"] for one in given["patches"]):
        assert [one for one in base if fits(one, target)], target
        assert [one for one in base if fits(one, target)] != [one for one in result if fits(one, target)], target
    for image in given["images"]:
        assert image["name"] in {one["image"] for one in ray_containers(base)}
        assert {one["image"] for one in ray_containers(result)} == {f"{image['newName']}:{image['newTag']}"}


def fits(manifest: Manifest, target: dict[str, str]) -> bool:
    return manifest["kind"] == target["kind"] and manifest["metadata"]["name"] == target.get(
        "name", manifest["metadata"]["name"]
    )
