"""One parallel path for a device, many, and many hosts: a mesh with the single axis "data".

Parameters are on every device, rows of a batch are spread over them, and what they add up is summed over the axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mms_jax.errors import SettingError, TrainingError

AXIS = "data"


def initialize(
    *, coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes of a job into one; before anything else is done with JAX.

    Without arguments they are found out from the cluster (SLURM, Open MPI, Cloud TPU, Kubernetes).

    Args:
        coordinator_address: "host:port" of process 0, the same for all.
        num_processes: how many there are.
        process_id: which of them this is, from 0.

    Raises:
        SettingError: some of the three are missing, or the job cannot be joined.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise SettingError("--coordinator_address, --num_processes and --process_id go together; one is missing")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as cause:
        raise SettingError(f"this process cannot join the job: {cause}") from cause


def in_main_process(function: Callable[[], None]) -> None:
    """Call it in process 0 while the others wait; where it raises, all processes do, instead of waiting for ever.

    Raises:
        TrainingError: in the others, that process 0 failed.
    """
    if jax.process_count() == 1:
        return function()
    failure = None
    try:
        if jax.process_index() == 0:
            function()
    except Exception as error:  # the others are told first
        failure = error
    failed = multihost_utils.broadcast_one_to_all(np.array(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise TrainingError("process 0 failed, for the reason that it gives")


def make_mesh(*, num_devices: int | None = None) -> Mesh:
    """All devices of all processes (or the first ``num_devices``), process by process, along the axis "data"."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices[:num_devices]), (AXIS,), axis_types=(AxisType.Auto,))


def local_shards(mesh: Mesh) -> list[int]:
    """Which of the mesh's shards belong to this process: consecutive numbers."""
    return [index for index, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a tree of equal arrays of every process on all devices."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def local_copy(tree: Any) -> Any:
    """A replicated tree as this process has it: what one process alone does with it must not involve the others."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def shard_rows(tree: Any, mesh: Mesh, *, axis: int) -> Any:
    """Spread arrays over the devices along one of their axes; each process gives the part of ``local_shards``."""
    spec = PartitionSpec(*[None] * axis, AXIS)
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def over_shards(function: Callable[..., Any], mesh: Mesh, *, rows: tuple[int | None, ...], out: Any = None) -> Any:
    """``function`` of every device's share of the rows; what it returns must be sums made by ``add_up``.

    Args:
        function: of as many arguments as ``rows`` has entries.
        mesh: from ``make_mesh``.
        rows: for each argument the axis that is spread, or None for one that all devices have whole.
        out: the axis that is spread in what is returned, where it is no sum.
    """
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS) for axis in rows)
    out_spec = PartitionSpec() if out is None else PartitionSpec(*[None] * out, AXIS)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_spec, check_vma=False)


def add_up(tree: Any) -> Any:
    """Sums over all devices, inside ``over_shards``."""
    return lax.psum(tree, AXIS)


def shard_index() -> jax.Array:
    """Which shard this is, inside ``over_shards``."""
    return lax.axis_index(AXIS)
