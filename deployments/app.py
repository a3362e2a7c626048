"""The whole topology on one screen: every replica count, CPU and GPU share, queue limit and bind.

`build_app(settings)` is also what `serve run` and `serve deploy` call, with the settings as `args`
(infra/serve/*.yaml).
"""

# No `from __future__ import annotations` here: Serve reads build_app's annotation to make Settings of a config's args.

import re
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.embedder import Embedder
from deployments.generator import Generator, generator_options
from deployments.indexer import Indexer
from deployments.ingress import Orchestrator, create_api
from deployments.reranker import CrossEncoder, LateInteraction
from deployments.retriever import Retriever
from rag.config import Settings
from rag.evidence import check_fitted
from rag.step_settings import StageServing

# Health checks, readiness and searches come beside the questions that are at work.
SPARE_REQUESTS = 16
# A request waits in the orchestrator, whose queue is bounded; behind it a stage's queue never has to be longer.
HEALTH_CHECK_PERIOD_S = 5
HEALTH_CHECK_TIMEOUT_S = 30
# Of every replica: a line is a JSON object, with the request's id where there is a request.
JSON_LOGS = {"encoding": "JSON"}
# Two models on two cores: OpenMP's threads spin at each of a forward pass's barriers while the one that they wait for
# has no core. Asleep they leave it one: 12 to 15 searches/s in place of 3 to 6 at 8 connections (one start of each).
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive"}


def build_app(settings: Settings) -> Application:
    """The graph: the orchestrator over embedder, retriever, reranker, a generator for each LLM, and indexer.

    Raises SettingsError for an evidence gate that was fitted to other models.
    """
    check_fitted(settings)
    serving = settings.serve
    # A question holds at most two calls of a stage at once: scoring the question while a sentence is grounded.
    stage_requests = 2 * serving.max_inflight + SPARE_REQUESTS
    embedder = _deploy(Embedder, settings, serving.embedder, stage_requests, environment=PATIENT_THREADS)
    retriever = _deploy(Retriever, settings, serving.retriever, stage_requests)
    reranker = _reranker(settings, stage_requests, embedder)
    indexer = _deploy(Indexer, settings, serving.indexer, stage_requests, embedder)
    generators = {
        name: build_generator(settings.for_llm(name), settings.generator.model_id) for name in settings.engines
    }
    orchestrator: Any = serve.deployment(
        serve.ingress(create_api(serving))(Orchestrator),
        **_options(serving.orchestrator, serving.max_inflight + serving.max_queued + SPARE_REQUESTS),
    )
    return orchestrator.bind(settings, embedder, retriever, reranker, generators, indexer)


def build_generator(settings: Settings, first: str) -> Application:
    """The LLM that is these settings' `generator`; all but the first carry their name."""
    llm, serving = settings.generator, settings.serve
    deployment: Any = serve.deployment(
        Generator,
        name="Generator" if llm.model_id == first else f"Generator-{re.sub('[^A-Za-z0-9.-]', '-', llm.model_id)}",
        **_limits(serving.max_inflight + SPARE_REQUESTS),
        graceful_shutdown_timeout_s=settings.deadlines.generate_s + 5,
        **generator_options(llm, serving.generator),
    )
    return deployment.bind(settings, HEALTH_CHECK_TIMEOUT_S)


def _reranker(settings: Settings, max_ongoing: int, embedder: Application) -> Application:
    serving = settings.serve.reranker
    if settings.reranker.kind == "maxsim":
        return _deploy(LateInteraction, settings, serving, max_ongoing, embedder, name="Reranker")
    return _deploy(CrossEncoder, settings, serving, max_ongoing, environment=PATIENT_THREADS, name="Reranker")


def _deploy(
    stage: type,
    settings: Settings,
    serving: StageServing,
    max_ongoing: int,
    *handles: Application,
    environment: dict[str, str] | None = None,
    name: str | None = None,
) -> Application:
    deployment: Any = serve.deployment(
        stage, name=name or stage.__name__, **_options(serving, max_ongoing, environment)
    )
    return deployment.bind(settings, *handles)


def _options(serving: StageServing, max_ongoing: int, environment: dict[str, str] | None = None) -> dict[str, Any]:
    actor = {"num_cpus": serving.num_cpus, "num_gpus": serving.num_gpus}
    return {
        "num_replicas": serving.replicas,
        **_limits(max_ongoing),
        "graceful_shutdown_timeout_s": 5,
        "ray_actor_options": actor | ({"runtime_env": {"env_vars": environment}} if environment else {}),
    }


def _limits(max_ongoing: int) -> dict[str, Any]:
    return {
        "max_ongoing_requests": max_ongoing,
        "max_queued_requests": max_ongoing,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "logging_config": JSON_LOGS,
        # How often a replica that is to stop looks whether its last request has ended.
        "graceful_shutdown_wait_loop_s": 0.25,
    }
