"""A spare process for each worker of a group, which has imported what takes seconds.

A group that lost a worker starts again in new processes, which spend most of that time on importing torch and Ray
Train. Ray gives it the spares instead: they were started for the same environment, and have done nothing yet.
"""

import warnings
from importlib import import_module
from typing import Any

import ray
from grpc import RpcError
from ray._private.grpc_utils import init_grpc_channel
from ray._private.worker import global_worker
from ray.core.generated import node_manager_pb2, runtime_environment_pb2
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

from eagleray.contracts.errors import Noted

MESSAGES: Any = node_manager_pb2, runtime_environment_pb2  # generated, without types
HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": f"{__name__}.prepare"}  # in the environment of workers and spares
IMPORTED = ("torch._dynamo", "eagleray.ray_backend.workers")  # the first by the first step of any optimizer
KEPT = 30 * 24 * 3600  # seconds that it may wait; it ends with the job


def prepare() -> None:
    """Import what a worker needs, when its process starts."""
    for name in IMPORTED:
        import_module(name)


def ask_for_spare() -> None:
    """Let the node of this worker start a process for the same environment."""
    node: Any = global_worker.node
    requests, environments = MESSAGES
    same = environments.RuntimeEnvInfo(serialized_runtime_env=ray.get_runtime_context().get_runtime_env_string())
    request = requests.PrestartWorkersRequest(  # of PYTHON, the default
        job_id=global_worker.current_job_id.binary(),
        runtime_env_info=same,
        keep_alive_duration_secs=KEPT,
        num_workers=1,
    )
    channel = init_grpc_channel(f"{node.node_ip_address}:{node.node_manager_port}")
    try:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=10)
    except RpcError as error:
        warnings.warn(f"a lost worker starts again more slowly: {error}", Noted, stacklevel=2)
