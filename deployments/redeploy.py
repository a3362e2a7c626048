"""`rag split` and `rag set`: the running application deployed again as it stands, with another `user_config` of the
orchestrator's.

Serve changes a `user_config` in place, but `serve.run` gives every deployment a new version, which restarts all. Here
each keeps the version that it has. What `serve deploy` deployed is changed in its file instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.generated.serve_pb2 import ApplicationArgs, DeploymentArgs
from ray.serve.schema import APIType

from deployments.launch import APP_NAME
from deployments.ray_session import join_ray
from rag.config import Settings
from rag.errors import SettingsError, StageError

WAIT_S = 60.0


def change_live(address: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Joins the Ray of a running service, and has its orchestrator take the changes; see Settings.with_live.

    Raises SettingsError for what cannot change, or for a service that `serve deploy` deployed, and StageError when none
    runs or it does not take them.
    """
    join_ray(address)
    try:
        redeploy(changes)
    finally:
        ray.shutdown()


def redeploy(changes: Mapping[str, Mapping[str, Any]]) -> None:
    """The same within a process that has joined; returns when every replica of the orchestrator has them.

    What was changed before and is not named stays; a `split` is whole.
    """
    client: ServeControllerClient = _get_global_client()
    application = client.get_serve_details()["applications"].get(APP_NAME)
    if application is None:
        raise StageError("live", f"no application {APP_NAME!r} runs there; start the service with `rag serve`")
    orchestrator = ray.get(client._controller.get_ingress_deployment_name.remote(APP_NAME))
    found, _ = client.get_deployment_info(orchestrator, APP_NAME)
    user_config: dict[str, Any] = dict(found.deployment_config.user_config or {})
    for group, given in changes.items():
        user_config[group] = dict(given) if group == "split" else {**user_config.get(group, {}), **given}
    if application["source"] != APIType.IMPERATIVE:
        raise SettingsError(
            f"the service was deployed by `serve deploy`: set `user_config: {json.dumps(user_config)}` for the "
            f"deployment {orchestrator} in its file, and deploy that again"
        )
    started_with: Settings = found.replica_config.init_args[0]
    started_with.with_live(user_config)  # a replica that does not take it would not start any more
    deployments = [
        _as_deployed(client, name, user_config if name == orchestrator else None) for name in application["deployments"]
    ]
    arguments = ApplicationArgs(external_scaler_enabled=application["external_scaler_enabled"])
    ray.get(
        client._controller.deploy_applications.remote(
            {APP_NAME: deployments}, {APP_NAME: arguments.SerializeToString()}
        )
    )
    _wait_for(client, orchestrator, user_config)


def _as_deployed(client: ServeControllerClient, name: str, user_config: dict[str, Any] | None) -> bytes:
    """A deployment's own arguments, with another `user_config` where one is given."""
    found, route = client.get_deployment_info(name, APP_NAME)
    if user_config is not None:
        found.deployment_config.user_config = user_config
    arguments: bytes = DeploymentArgs(
        deployment_name=name,
        deployment_config=found.deployment_config.to_proto_bytes(),
        replica_config=found.replica_config.to_proto_bytes(),
        deployer_job_id=found.deployer_job_id,
        ingress=route is not None,
        route_prefix=route,
    ).SerializeToString()
    return arguments


def _wait_for(client: ServeControllerClient, orchestrator: str, user_config: dict[str, Any]) -> None:
    """Until the controller's next turn has made the `user_config` its aim, and the replicas have it."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        aim, _ = client.get_deployment_info(orchestrator, APP_NAME)
        deployment = client.get_serve_details()["applications"][APP_NAME]["deployments"][orchestrator]
        if aim.deployment_config.user_config == user_config and deployment["status"] == "HEALTHY":
            return
        time.sleep(0.1)
    raise StageError("live", f"{orchestrator} is {deployment['status']} after {WAIT_S:g} s: {deployment['message']}")
