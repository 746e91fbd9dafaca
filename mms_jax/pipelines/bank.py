"""Adapters of many languages on the device at once, so that every row of a batch can be in a language of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.errors import MMSError
from mms_jax.models.layers import MASKED_SCORE
from mms_jax.models.trees import Params
from mms_jax.pipelines.adapters import LanguageAdapter, Tag
from mms_jax.text.ctc import CTCVocabulary

ADAPTER_MEMORY = 2**30  # bytes: 72 languages of mms-1b-all in bfloat16 with heads of 4,096, 220 with heads of 128
FIRST_WIDTH = 64  # columns of the heads; then powers of two, up to the widest vocabulary
FIRST_SLOTS = 16  # once there is a second language; then twice as many, and so on


class Alphabet(NamedTuple):
    """What a language writes with."""

    vocabulary: CTCVocabulary
    vocab_size: int  # columns of its head, padding not counted


class Gathered(NamedTuple):
    """The adapters of some rows."""

    leaves: Params  # each [rows, …], layers stacked behind that axis
    alphabets: list[Alphabet]  # of each row


class LostAdapterError(Exception):
    """An adapter cannot be read (any more)."""

    def __init__(self, tag: Tag, error: MMSError):
        super().__init__(tag, error)
        self.tag, self.error = tag, error


class AdapterBank:
    """Adapters and heads stacked on the device, each language in a slot; the least recently used one leaves for a new.

    Heads are as wide as the widest vocabulary so far, rounded up to a power of two: added columns never win. A new
    language changes the contents of a free slot and no shape, so nothing is compiled for it. Where there is none, there
    are made 16, 32, … at once, for which three small programs are compiled, and only a wider vocabulary than any before
    changes the shape of the model's call. Safe to use from many threads.

    Args:
        read: the adapter of a tag, from its file.
        memory: most bytes of all slots; one language is held in any case.
    """

    def __init__(self, read: Callable[[Tag], LanguageAdapter], *, memory: int = ADAPTER_MEMORY):
        self._read = read
        self._memory = memory
        self._lock = threading.RLock()
        self._alphabets: dict[Tag, Alphabet] = {}
        self._width = FIRST_WIDTH
        self._clear()

    def alphabet(self, tag: Tag) -> Alphabet:
        """What a language writes with. Its adapter is read the first time.

        Raises:
            CheckpointError: the adapter does not fit the model.
        """
        with self._lock:
            if tag not in self._alphabets:
                self._add(self._read(tag), keep=frozenset())
            return self._alphabets[tag]

    def gather(self, tags: Sequence[Tag]) -> Gathered:
        """The adapters of rows in these languages.

        Where the languages are more than fit at once these are the first rows only, and a power of two of them.

        Raises:
            LostAdapterError: one of them cannot be read.
        """
        with self._lock:
            width, num_rows = None, 0
            while width != self._width:  # a wider head than any before empties the slots
                width = self._width
                num_rows = self._hold(tags)
            slots = np.array([self._slots[tag] for tag in tags[:num_rows]], np.int32)
            return Gathered(_gather(self._leaves, slots), [self._alphabets[tag] for tag in tags[:num_rows]])

    def forget(self, tag: Tag) -> None:
        """Read this language again when it is next asked for: its adapter is another one now."""
        with self._lock:
            self._alphabets.pop(tag, None)
            if tag in self._slots:
                self._free.append(self._slots.pop(tag))

    @property
    def capacity(self) -> int:
        """Languages that fit at once, as wide as heads are now."""
        return max(1, self._memory // self._slot_bytes)

    def _hold(self, tags: Sequence[Tag]) -> int:
        """Bring languages in, row by row, until no slot is left; returns how many rows, a power of two."""
        for tag in dict.fromkeys(tags):
            if tag in self._slots:  # those that are there must not leave for those that are not
                self._slots.move_to_end(tag)
        held: set[Tag] = set()
        num_rows = 0
        for tag in tags:
            if tag not in self._slots and not self._add(self._read_again(tag), keep=held):
                break
            held.add(tag)
            num_rows += 1
        return 1 << (num_rows.bit_length() - 1)

    def _read_again(self, tag: Tag) -> LanguageAdapter:
        try:
            return self._read(tag)
        except MMSError as error:
            raise LostAdapterError(tag, error) from error

    def _add(self, adapter: LanguageAdapter, *, keep: frozenset[Tag] | set[Tag]) -> bool:
        """Put an adapter into a slot; False if every slot holds a language of ``keep``."""
        tag, size = adapter.language, adapter.vocab_size
        self._alphabets[tag] = Alphabet(adapter.vocabulary, size)
        if size > self._width:
            self._width = 1 << (size - 1).bit_length()
            self._clear()
        leaves = {**adapter.leaves, "lm_head": _pad_head(adapter.leaves["lm_head"], self._width)}
        self._slot_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))
        slot = self._free_slot(leaves, keep)
        if slot is None:
            return False
        self._leaves = _put(self._leaves, leaves, slot)
        self._slots[tag] = slot
        return True

    def _free_slot(self, leaves: Params, keep: frozenset[Tag] | set[Tag]) -> int | None:
        if not self._free and self._num_slots < self.capacity:
            self._grow(leaves)
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._slots))
        return None if oldest in keep else self._slots.pop(oldest)

    def _grow(self, leaves: Params) -> None:
        """Slots for more languages: first one, since many users need no more."""
        wanted = max(FIRST_SLOTS, 2 * self._num_slots) if self._num_slots else 1
        new = min(wanted, self.capacity) - self._num_slots
        if not self._num_slots:
            self._leaves = jax.tree.map(lambda leaf: jnp.zeros((new, *leaf.shape), leaf.dtype), leaves)
        else:
            self._leaves = _append(self._leaves, new)
        self._free += range(self._num_slots + new - 1, self._num_slots - 1, -1)
        self._num_slots += new

    def _clear(self) -> None:
        self._slots: OrderedDict[Tag, int] = OrderedDict()  # the least recently used first
        self._free: list[int] = []
        self._num_slots = 0
        self._slot_bytes = 1
        self._leaves: Params = {}


def _pad_head(head: Params, width: int) -> dict[str, np.ndarray]:
    """Widen a head [D, V] to [D, width] on the host, where new shapes cost nothing; new columns never win."""
    extra = width - head["kernel"].shape[1]
    return {
        "kernel": np.pad(np.asarray(head["kernel"]), ((0, 0), (0, extra))),
        "bias": np.pad(np.asarray(head["bias"]), (0, extra), constant_values=MASKED_SCORE),
    }


@jax.jit
def _gather(leaves: Params, slots: Any) -> Params:
    return jax.tree.map(lambda leaf: leaf[slots], leaves)


@partial(jax.jit, donate_argnums=0)
def _put(leaves: Params, own: Params, slot: Any) -> Params:
    return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), leaves, own)


@partial(jax.jit, static_argnums=1)
def _append(leaves: Params, count: int) -> Params:
    return jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, count), *((0, 0),) * (leaf.ndim - 1))), leaves)
