"""Checkpoints of a running job: written in the background, whole or not at all, the newest and the best kept.

Orbax writes the arrays. Which checkpoints there are and which are kept is decided here, because its own manager deletes
a checkpoint file by file (killed meanwhile, it leaves one that looks whole) and does so before the new one is on disk.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.errors import CheckpointError, SettingError, TrainingError
from mms_jax.files import read_json
from mms_jax.training.files.orbax_noise import OrbaxNoise

_STATE, _INFO = "state", "info"  # folders of a checkpoint
_INFO_FILE = "info.json"
_UNFINISHED = ".orbax-checkpoint-tmp"  # what orbax names a checkpoint before it is whole
_DISCARDED = ".discarded-"
_STEP = re.compile(r"0|[1-9]\d*")
_ERRNO = re.compile(r"os_error_code='(\d+)'")  # the operating system's part of a TensorStore message
_MAX_CAUSE_CHARS = 300
_PATIENCE = (0.0, 0.1, 0.5)  # seconds


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any  # the template's tree
    info: dict[str, Any]


class _Entry(NamedTuple):
    """What a checkpoint says of itself."""

    metric: float | None
    leaves: dict[str, list[Any]]  # path: [dtype, shape]
    info: dict[str, Any]


class Checkpoints:
    """The checkpoints in a directory; of one job at a time, and with several processes used by all of them alike.

    Args:
        directory: local, or shared by all hosts; made if it is not there.
        save_total_limit: how many of the newest are kept, beside the best; None keeps all.
        best_mode: whether the best is the one with the lowest or with the highest metric; the earlier of equal ones.

    Raises:
        SettingError: a limit below 1, another mode. TrainingError: the directory cannot be made.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        save_total_limit: int | None = None,
        best_mode: Literal["min", "max"] = "min",
    ):
        if save_total_limit is not None and save_total_limit < 1:
            raise SettingError(f"save_total_limit is {save_total_limit}; it must be at least 1, or None to keep all")
        if best_mode not in ("min", "max"):
            raise SettingError(f"best_mode is {best_mode!r}; it must be 'min' or 'max'")
        if "://" in str(directory):
            raise TrainingError(f"{directory}: checkpoints are kept in local directories; mount the remote one")
        self.directory = Path(directory).expanduser().absolute()
        self._limit = save_total_limit
        self._sign = 1 if best_mode == "min" else -1
        self._entries: dict[int, _Entry] = {}  # checkpoints never change, so each is read once
        self._checkpointer: Any = None
        self._pending: Future[None] | None = None
        self._clean = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.directory}: checkpoints cannot be kept there ({error.strerror}); choose another output_dir"
            ) from error
        self._noise = OrbaxNoise()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._orbax()  # here, not during the first save: to import it takes half a second

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except TrainingError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # why the block ended matters more; this is not lost

    def steps(self) -> list[int]:
        """The steps that can be restored, in order; one that is still being written is not among them."""
        return sorted(self._read())

    def latest(self) -> int | None:
        """The newest step that can be restored, or None."""
        return max(self._read(), default=None)

    def best(self) -> int | None:
        """The step with the best metric, or None where none has one."""
        scores = {step: self._sign * entry.metric for step, entry in self._read().items() if entry.metric is not None}
        return min(scores, key=lambda step: (scores[step], step), default=None)

    def info(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the arrays of a step, the newest by default; no array is read.

        Raises:
            TrainingError: there is no such checkpoint.
        """
        return self._entry(step)[1].info

    def save(
        self, step: int, state: Any, *, info: Mapping[str, Any] | None = None, metric: float | None = None
    ) -> None:
        """Copy the state to the host and return; the rest happens in the background.

        It waits for the save before this one. 10 MB take 15 ms on two cores.

        Args:
            step: later than every checkpoint there is.
            state: a tree of arrays; a donated or changed one does not change what is saved.
            info: small, of JSON's types; comes back as JSON gives it (tuples as lists, keys as text).
            metric: what ``best`` compares; NaN counts as none.

        Raises:
            TrainingError: an earlier save failed, this one cannot be begun, or ``step`` is not the newest. TypeError:
                ``info`` is not JSON's.
        """
        self.wait()
        newest = self.latest()
        if step < 0 or (newest is not None and step <= newest):
            follow = f"a checkpoint of step {step} cannot follow that of step {newest}"
            raise TrainingError(f"{self.directory}: {follow}; resume from the newest, or choose another output_dir")
        leaves = _flat(state)
        score = None if metric is None or not math.isfinite(metric) else float(metric)
        document = {"step": step, "metric": score, "leaves": _kinds(leaves), "info": dict(info or {})}
        json.dumps(document)  # in this thread, where the traceback shows who gave what JSON cannot hold
        try:
            self._discard_leftovers()
            self._start(step, leaves, document)
        except Exception as error:  # whatever orbax raises: nothing was written
            raise self._failed(step, error) from error
        self._pending = self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Return when the save in progress is on disk.

        Raises:
            TrainingError: it failed; that is said once, and the next save begins afresh.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the background threads; another save starts them again no more.

        Raises:
            TrainingError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._checkpointer is not None:
                self._checkpointer.close()
            self._noise.close()

    def restore(self, template: Any, *, step: int | None = None) -> Restored:
        """Read a checkpoint bit by bit as it was saved; the newest by default.

        Args:
            template: a tree like the saved one, of arrays or ``ShapeDtypeStruct``. Leaves come back with its leaves'
                shardings; on the default device, as any new array, where one has none; as NumPy arrays where it is one.

        Raises:
            TrainingError: no such checkpoint; it is of another tree, and the message names a leaf; or it is damaged.
        """
        self.wait()
        step, entry = self._entry(step)
        wanted = _flat(template)
        self._check_leaves(step, entry.leaves, _kinds(wanted))
        try:
            found = self._load(step, wanted)
        except (OSError, ValueError, KeyError) as error:  # what orbax and TensorStore raise for damage
            older = max((other for other in self.steps() if other < step), default=None)
            instead = "begin anew" if older is None else f"resume from step {older}"
            path = self.directory / str(step)
            raise TrainingError(f"{path}: cannot be read ({_cause(error)}); remove it to {instead}") from error
        leaves = [_placed(found[path], like) for path, like in wanted.items()]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(template), leaves), entry.info)

    def _read(self) -> dict[int, _Entry]:
        """Every whole checkpoint that is on disk now."""
        try:
            names = [name for name in os.listdir(self.directory) if _STEP.fullmatch(name)]
        except FileNotFoundError:  # the user may have removed it
            names = []
        entries = {int(name): self._entries.get(int(name)) or self._describe(int(name)) for name in names}
        self._entries = {step: entry for step, entry in entries.items() if entry is not None}
        return self._entries

    def _describe(self, step: int) -> _Entry | None:
        """What a checkpoint says of itself; None where it does not: it is no whole one, or still being copied here."""
        try:
            values = read_json(self.directory / str(step) / _INFO / _INFO_FILE)
            return _Entry(values["metric"], values["leaves"], values["info"])
        except (CheckpointError, KeyError):
            return None

    def _entry(self, step: int | None) -> tuple[int, _Entry]:
        entries = self._read()
        chosen = max(entries, default=None) if step is None else step
        if chosen is None or chosen not in entries:
            there = ", ".join(map(str, sorted(entries))) or "none"
            what = "no checkpoint" if chosen is None else f"no checkpoint of step {chosen}"
            raise TrainingError(f"{self.directory}: {what} (there: {there}); train without resuming, or choose one")
        return chosen, entries[chosen]

    def _check_leaves(self, step: int, saved: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]]) -> None:
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise TrainingError(
                    f"{self.directory / str(step)}: {path} is {_named(saved.get(path))} there and "
                    f"{_named(wanted.get(path))} here; resume with the model, languages and optimiser settings it was "
                    "saved with, or choose another output_dir"
                )

    def _start(self, step: int, leaves: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        """All that training must wait for: the directory is made and the arrays are copied."""
        import orbax.checkpoint as ocp

        state = {path: np.asarray(leaf) if _is_of_this_host(leaf) else leaf for path, leaf in leaves.items()}
        content = {_STATE: ocp.args.StandardSave(state), _INFO: ocp.args.JsonSave(dict(document))}
        # force: a part of a checkpoint of that name gives way; a whole one was refused
        self._orbax().save(self.directory / str(step), args=ocp.args.Composite(**content), force=True)

    def _finish(self, step: int) -> None:
        """In the background: wait until it is written and has its name, then make room."""
        try:
            self._orbax().wait_until_finished()
            if jax.process_index() == 0:
                _sync(self.directory / str(step))
                self._discard_superseded()
        except Exception as error:  # whatever came out of orbax's threads; ``wait`` raises it
            raise self._failed(step, error) from error

    def _failed(self, step: int, error: Exception) -> TrainingError:
        """What to say of a save that failed; what it left is removed now, for the disk may be full."""
        self._noise.failed = True
        failed, self._checkpointer = self._checkpointer, None  # it would raise the same error at the next save
        if failed is not None:
            with suppress(Exception):  # that error, again
                failed.close()
        self._clean = False
        for delay in _PATIENCE:  # other threads of orbax may still be writing
            time.sleep(delay)
            with suppress(OSError):  # where it cannot be, the next save tries again, and says so
                self._discard_leftovers()
        newest = self.latest()
        kept = "there is no earlier one" if newest is None else f"that of step {newest} and those before it are intact"
        what = f"the checkpoint of step {step} could not be written ({_cause(error)}); {kept}"
        if newest == step:
            what = f"the checkpoint of step {step} may not last, or older ones could not be removed ({_cause(error)})"
        return TrainingError(f"{self.directory}: {what}. Free some room or allow writing there, then resume")

    def _load(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves of a checkpoint: NumPy arrays, but those that several hosts share as they are to be shared."""
        import orbax.checkpoint as ocp

        targets = {path: _target(like) for path, like in wanted.items()}
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(targets)})
        return self._orbax().restore(self.directory / str(step), args=args)[_STATE]

    def _discard_leftovers(self) -> None:
        """Remove what killed or failed jobs left half-written or half-removed."""
        if self._clean or jax.process_index() != 0:
            return
        for path in list(self.directory.iterdir()):
            if _UNFINISHED in path.name or path.name.startswith(_DISCARDED):
                shutil.rmtree(path)
        self._clean = True

    def _discard_superseded(self) -> None:
        if self._limit is None:
            return
        for step in set(self.steps()[: -self._limit]) - {self.best()}:
            discarded = self.directory / f"{_DISCARDED}{step}-{secrets.token_hex(4)}"
            os.rename(self.directory / str(step), discarded)  # at once: half a checkpoint is never seen
            shutil.rmtree(discarded)

    def _orbax(self) -> Any:
        import orbax.checkpoint as ocp  # in functions, because only training needs it

        if self._checkpointer is None:
            handlers = {_STATE: ocp.StandardCheckpointHandler(), _INFO: ocp.JsonCheckpointHandler(filename=_INFO_FILE)}
            # Directories are made at once: where none can be, ``save`` says so, and nobody waits for a signal.
            options = ocp.AsyncOptions(create_directories_asynchronously=False)
            self._checkpointer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(**handlers), async_options=options
            )
        return self._checkpointer


def _flat(tree: Any) -> dict[str, Any]:
    """A tree as {"params/lm_head/kernel": leaf}, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(flat) == len(leaves), "two leaves of the state have the same path"
    for path, leaf in flat.items():
        if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or not leaf.size:
            raise TypeError(f"{path} is {leaf!r}; a state holds arrays of numbers, everything else goes into info")
    return flat


def _kinds(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}


def _named(kind: list[Any] | None) -> str:
    return "not" if kind is None else f"{kind[0]} {kind[1]}"


def _is_here(leaf: Any) -> bool:
    """Whether all of a leaf belongs on this process's devices, or on none."""
    sharding = getattr(leaf, "sharding", None)
    return sharding is None or sharding.is_fully_addressable


def _is_of_this_host(leaf: Any) -> bool:
    """Whether an array is one of several hosts', each with its own; orbax takes these as NumPy arrays only."""
    return not isinstance(leaf, np.ndarray) and jax.process_count() > 1 and _is_here(leaf)


def _target(like: Any) -> Any:
    """What has orbax restore a leaf like this."""
    if _is_here(like):
        return np.broadcast_to(np.zeros((), like.dtype), like.shape)
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=like.sharding)


def _placed(leaf: Any, like: Any) -> Any:
    """A leaf where ``like`` is, or is to be."""
    if isinstance(like, np.ndarray) or not _is_here(like):
        return leaf
    if like.sharding is None or not getattr(like, "committed", True):
        return jnp.asarray(leaf)  # as any new array: it follows those it is computed with
    return jax.device_put(leaf, like.sharding)


def _cause(error: BaseException) -> str:
    """Why, in one line; TensorStore's messages name every layer of it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    number = _ERRNO.search(text)
    return os.strerror(int(number[1])) if number else text[:_MAX_CAUSE_CHARS] or type(error).__name__


def _sync(directory: Path) -> None:
    """Have a checkpoint and its name on the disk itself: older ones may go only then, for the power may fail."""
    for path in (*directory.rglob("*"), directory, directory.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
