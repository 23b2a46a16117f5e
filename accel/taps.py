"""Taps: a compiled program shows the host every activation, and goes on with what the host hands back.

On a processor the callback works on the program's own buffers (``buffer_callback``). JAX's ``io_callback`` would copy
them into arrays of its own first, which takes a thread of XLA's, and XLA has one for each processor: the callback holds
it and waits for it. With one processor that hung for ever, in the first few tapped passes (jax 0.10, ``taskset -c 0``).
On buffers nothing is waited for. Another device's memory is not the host's, so there ``io_callback`` has to copy; and
the callback holds no thread that the copy needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback

from assay.accel.jax_settings import own_settings
from assay.formats import InputError
from assay.formats.contract.engine import Tap

ENDS = ("embedding", "ffn_residual", "logits")
"""Stages after which there is nothing in the same traced function (the body of the loop over layers is another) whose
order the data does not settle."""


class Taps:
    """The way from the programs of one model to the host's tap of the moment."""

    def __init__(self, device: jax.Device) -> None:
        self.device = device
        self._tap: Tap | None = None
        self._n_shown = 0
        self._one_at_a_time = Lock()
        self._before: tuple[jax.Array, ...] = ()
        """While a program is traced: what the callback before handed back."""

    @contextmanager
    def shown_to(self, tap: Tap | None, n_shown: int) -> Iterator[None]:
        """While the block lasts, tapped programs call ``tap`` with the first ``n_shown`` rows: the rest is padding.

        What runs must have ended when the block does. Raises InputError where JAX's transfer guard forbids taps.
        """
        self._tap, self._n_shown = tap, n_shown
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            # JAX itself hands a callback its arguments, in a thread where only settings of the whole process hold.
            if tap and "Disallowed" in str(error) and "transfer" in str(error):
                raise InputError("JAX may not move activations to the host, so there is nothing to tap",
                                 where="jax_transfer_guard=disallow_explicit",
                                 remedy="Set it to disallow, or for one thread only") from error  # fmt: skip
            raise
        finally:
            self._tap = None

    def device_tap(self, stage: str, layer: jax.Array | int, activation: jax.Array) -> jax.Array:
        """A tap for inside a compiled program: hands the activation to the host's tap and takes one back."""
        like = jax.ShapeDtypeStruct(activation.shape, activation.dtype)
        if self.device.platform != "cpu":
            return io_callback(partial(self._show, stage), like, layer, activation, ordered=True)
        in_place = buffer_callback(partial(self._show_buffers, stage), like, has_side_effect=True)
        before = () if stage == "embedding" else self._before
        shown = in_place(jnp.asarray(layer, jnp.int32), activation, *before)
        self._before = () if stage in ENDS else (shown,)
        return shown

    def _show_buffers(self, stage: str, _: Any, out: Any, layer: Any, activation: Any, *before: Any) -> None:
        """``_show``, from one buffer of the program to another. ``before`` is taken for the order's sake alone: XLA
        calls back in any order that the data allows, and q, k and v do not need one another."""
        np.asarray(out)[...] = self._show(stage, np.asarray(layer), np.asarray(activation))

    def _show(self, stage: str, layer: Any, activation: Any) -> np.ndarray:
        """Show the host's tap the rows that are tokens, not padding.

        XLA picks the thread: the tap sees JAX's settings of the process there, or the engine's.
        """
        assert self._tap is not None
        with self._one_at_a_time, own_settings(self.device):  # a thread of XLA's, with the process's settings
            whole, index, n = np.array(activation), int(layer), self._n_shown
            whole[:n] = self._tap(stage, None if index < 0 else index, whole[:n].copy())
        return whole
