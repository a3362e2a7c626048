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
from deployments.generator import Generator, generator_placement
from deployments.indexer import Indexer
from deployments.ingress import Orchestrator, create_api
from deployments.options import actor_options, stage_options
from deployments.reranker import CrossEncoder, LateInteraction
from deployments.retriever import Retriever
from rag.config import Settings
from rag.evidence import check_fitted
from rag.models import adapter_rank, check_reference, locate_answerability
from rag.serve_settings import StageServing, longest_calls_s

# Health checks, readiness and searches come beside the questions that are at work.
SPARE_REQUESTS = 16
# Two models on two cores: OpenMP's threads spin at each of a forward pass's barriers while the one that they wait for
# has no core. Asleep they leave it one: 12 to 15 searches/s in place of 3 to 6 at 8 connections (one start of each).
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive"}


def build_app(settings: Settings) -> Application:
    """The graph: the orchestrator over embedder, retriever, reranker, a generator for each LLM, and indexer.

    Raises SettingsError for an evidence gate that was fitted to other models, and ModelError for a model or an adapter
    that is not there: what raises here leaves a running service as it is, while a replica that finds it out took the
    place of one that served.
    """
    check_fitted(settings)
    for reference in settings.model_references:
        check_reference(reference)
    locate_answerability(settings)
    for llm in settings.engines.values():
        for folder in llm.adapters.values():
            adapter_rank(folder)
    serving, longest_s = settings.serve, longest_calls_s(settings.deadlines)
    embedder = _deploy(Embedder, settings, serving.embedder, longest_s["embedder"], environment=PATIENT_THREADS)
    retriever = _deploy(Retriever, settings, serving.retriever, longest_s["retriever"])
    reranker = _reranker(settings, longest_s["reranker"], embedder)
    indexer = _deploy(Indexer, settings, serving.indexer, longest_s["indexer"], embedder)
    generators = {
        name: build_generator(settings.for_llm(name), settings.generator.model_id) for name in settings.engines
    }
    # A question waits in the orchestrator, whose queue is bounded; behind it a stage's never has to be longer.
    waiting = serving.max_inflight + serving.max_queued + SPARE_REQUESTS
    orchestrator: Any = serve.deployment(
        serve.ingress(create_api(serving))(Orchestrator),
        ray_actor_options=actor_options(serving.orchestrator),
        **stage_options(serving.orchestrator, calls=waiting, longest_s=longest_s["orchestrator"]),
    )
    return orchestrator.bind(settings, embedder, retriever, reranker, generators, indexer)


def build_generator(settings: Settings, first: str) -> Application:
    """The LLM that is these settings' `generator`; all but the first carry their name."""
    llm, serving = settings.generator, settings.serve
    deployment: Any = serve.deployment(
        Generator,
        name="Generator" if llm.model_id == first else f"Generator-{re.sub('[^A-Za-z0-9.-]', '-', llm.model_id)}",
        **stage_options(
            serving.generator,
            calls=serving.max_inflight + SPARE_REQUESTS,
            longest_s=longest_calls_s(settings.deadlines)["generator"],
            llm=llm,
        ),
        **generator_placement(llm, serving.generator),
    )
    return deployment.bind(settings)


def _reranker(settings: Settings, longest_s: float, embedder: Application) -> Application:
    serving = settings.serve.reranker
    if settings.reranker.kind == "maxsim":
        return _deploy(LateInteraction, settings, serving, longest_s, embedder, name="Reranker")
    return _deploy(CrossEncoder, settings, serving, longest_s, environment=PATIENT_THREADS, name="Reranker")


def _deploy(
    stage: type,
    settings: Settings,
    serving: StageServing,
    longest_s: float,
    *handles: Application,
    environment: dict[str, str] | None = None,
    name: str | None = None,
) -> Application:
    deployment: Any = serve.deployment(
        stage,
        name=name or stage.__name__,
        ray_actor_options=actor_options(serving, environment),
        # A question holds at most two calls of a stage at once: scoring the question while a sentence is grounded.
        **stage_options(serving, calls=2 * settings.serve.max_inflight + SPARE_REQUESTS, longest_s=longest_s),
    )
    return deployment.bind(settings, *handles)
