"""What can be set for each deployment: how many replicas, by what they scale, and what each takes of its machine.

In a profile's YAML these are `serve.STAGE`, and `serving` of an LLM in `generators`. deployments.app makes Serve's own
options of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from rag.step_settings import MIB, DeadlineSettings, GeneratorSettings, StepSettings


class ScalingSettings(StepSettings):
    """By what a stage with `max_replicas` scales: wanted replicas = calls at work and waiting / target, smoothed."""

    initial_replicas: int | None = Field(
        None, ge=1, description="at the start, before any load was measured; none: `replicas`"
    )
    target_ongoing_requests: float | None = Field(
        None,
        gt=0,
        description="calls for each replica; none: 2, of an LLM half of max_num_seqs: well before its batches are full",
    )
    upscale_delay_s: float = Field(30.0, ge=0, description="a peak shorter than a replica's start shall start none")
    downscale_delay_s: float = Field(
        600.0, ge=0, description="a pause between two peaks shall not cost a model's load again"
    )
    upscaling_factor: float = Field(1.0, gt=0, description="share of the wanted change made at once; 1: all of it")
    downscaling_factor: float = Field(1.0, gt=0, description="the same of a change to fewer")
    look_back_period_s: float = Field(
        30.0, gt=0, description="over which calls are averaged: several of the longest calls, or single ones are seen"
    )
    metrics_interval_s: float = Field(10.0, gt=0, description="how often they are reported; below the look-back")

    @model_validator(mode="after")
    def _see_reports(self) -> Self:
        if self.metrics_interval_s > self.look_back_period_s:
            raise ValueError(
                f"metrics_interval_s ({self.metrics_interval_s:g}) must not be above look_back_period_s "
                f"({self.look_back_period_s:g}): there would be nothing to average"
            )
        return self


class StageServing(StepSettings):
    """Ray's view of one deployment: replicas, limits, logical shares, health and its end."""

    replicas: int = Field(
        1,
        ge=1,
        description="with max_replicas the least. Never 0: a question waits no longer than its deadline, and a model "
        "takes longer to load",
    )
    max_replicas: int | None = Field(
        None, ge=1, description="from `replicas` up to so many by the load, see `scaling`; none: always `replicas`"
    )
    scaling: ScalingSettings = ScalingSettings()
    max_ongoing: int | None = Field(
        None, ge=1, description="calls that a replica takes at once; none: all that the questions at work can send"
    )
    max_queued: int | None = Field(
        None, ge=1, description="calls that wait for one, more are refused; none: as many as max_ongoing"
    )
    num_cpus: float = Field(0.1, ge=0, description="logical, for placement alone: nothing is held to it")
    num_gpus: float = Field(0.0, ge=0, description="a share of one below 1, whole ones above; nothing is held to it")
    memory_bytes: int | None = Field(None, ge=1 * MIB, description="for placement alone; none: not looked at")
    resources: Mapping[str, float] = Field(
        default_factory=dict, description="others that a node was started with, to place a stage: name -> amount"
    )
    health_period_s: float = Field(5.0, gt=0, description="an engine that hangs is seen within two of them")
    health_timeout_s: float = Field(30.0, gt=0, description="a busy machine answers late and is not sick")
    shutdown_s: float | None = Field(
        None, gt=0, description="a replica that goes has so long to end its calls; none: 5 more than the longest takes"
    )

    @model_validator(mode="after")
    def _order_bounds(self) -> Self:
        most, first = self.max_replicas, self.scaling.initial_replicas
        if most is not None and most < self.replicas:
            raise ValueError(f"max_replicas ({most}) must not be below replicas ({self.replicas})")
        if first is not None and not self.replicas <= first <= (most or self.replicas):
            raise ValueError(
                f"scaling.initial_replicas ({first}) must be from replicas ({self.replicas}) "
                f"to max_replicas ({most or self.replicas})"
            )
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(f"num_gpus ({self.num_gpus:g}) must be a share of one GPU or a whole number")
        return self


class ModelServing(StageServing):
    """The same of a stage with a model of its own, which may want a certain GPU and room for others beside it."""

    accelerator_type: str | None = Field(None, description="Ray's name of it, such as A100; none: any")
    max_replicas_per_node: int | None = Field(
        None, ge=1, description="as many as the node's GPUs have room for beside their LLMs; none: no limit"
    )


class GeneratorServing(StageServing):
    """The same of an LLM's deployment; its GPU's type is `generator.accelerator_type`."""

    num_cpus: float = Field(1, ge=0, description="of the replica itself; each of its workers on a CPU counts one more")
    placement: Literal["PACK", "STRICT_PACK"] = Field(
        "STRICT_PACK",
        description="STRICT_PACK: the workers of tensor_parallel on one node, whose link is fast; PACK: where they fit",
    )


class OtherGenerator(GeneratorSettings):
    """An LLM beside `generator`, with a deployment of its own; `serving` is what serve.generator is for that one."""

    serving: GeneratorServing = GeneratorServing()


class ServeSettings(StepSettings):
    """The HTTP address, the request limits and every deployment's share."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="of the Ray that is started here; none: `port` + 1000, or a free one"
    )
    fast_path: bool = True
    max_inflight: int = Field(16, ge=1, description="questions worked on at once")
    max_queued: int = Field(32, ge=0, description="questions waiting beyond those; more are refused with 503")
    max_body_bytes: int = Field(1 * MIB, ge=1024)
    anonymous_groups: tuple[str, ...] = Field((), description="whose documents a caller without a key may see")
    max_upload_bytes: int = Field(200 * MIB, ge=1024, description="a multipart body of POST /documents")
    max_text_bytes: int = Field(16 * MIB, ge=1024, description="a JSON body of POST /documents")
    max_upload_files: int = Field(100, ge=1, description="files of one POST /documents")
    max_uploads: int = Field(4, ge=1, description="uploads received at once; more are refused with 503")
    max_stored_bytes: int = Field(2048 * MIB, ge=1024, description="uploads that wait for their jobs, all together")
    keep_jobs_days: int = Field(7, ge=1, description="how long GET /jobs/{id} knows a finished job")
    logical_cpus: int = Field(8, ge=1, description="what Ray counts as this machine's CPUs when it is started here")
    object_store_bytes: int = Field(256 * MIB, ge=78 * MIB)
    orchestrator: StageServing = StageServing()
    embedder: ModelServing = ModelServing()
    retriever: StageServing = StageServing()
    reranker: ModelServing = ModelServing()
    generator: GeneratorServing = GeneratorServing()
    indexer: StageServing = StageServing()


def longest_calls_s(limits: DeadlineSettings) -> dict[str, float]:
    """How long one call of each stage may take, by the stage's name."""
    scored = max(limits.rerank_s, limits.ground_s)
    return {
        "orchestrator": limits.total_s,
        "embedder": max(limits.embed_s, scored),  # late interaction has a query's token vectors made
        "retriever": max(limits.dense_s, limits.lexical_s),
        "reranker": scored,
        "generator": limits.generate_s,
        "indexer": 10.0,  # the documents' own requests: a job goes on with the next replica
    }


def scaling_target(llm: GeneratorSettings | None, serving: StageServing) -> float:
    """Calls for each replica of a stage, or of an LLM."""
    if serving.scaling.target_ongoing_requests is not None:
        return serving.scaling.target_ongoing_requests
    # Another engine is worth its start well before the batches of those that there are are full.
    return llm.max_num_seqs / 2 if llm else 2.0
