"""The whole attack loop as one CUDA graph: at small batches the host cannot launch ten passes fast enough."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.attacks.modes import module_of
from robustfast.ops.backend import active_backend

__all__ = ["GraphedLoop"]

# A full batch and a last partial one, with and without autocast.
_CAPTURES_KEPT = 4

Buffers = dict[str, Any]
Loop = Callable[..., None]
Memory = tuple[Any, torch.cuda.Stream]


class GraphedLoop:
    """Run a loop over buffers from a CUDA graph: captured at the first call with each kind of buffers, then replayed.

    A replay repeats the captured kernels on the captured addresses. So the loop runs on buffers of its own, into
    which each call's values are copied, and a capture is only good for the weights it saw: weights that an optimizer
    updates in place are followed, weights that were replaced (``model.to``, ``load_state_dict(assign=True)``) mean a
    new capture. What a model decides in Python (``if self.flag``) is frozen at capture.

    All captures of a loop share the memory of their activations, about that of one eager step: they never run at the
    same time, and everything that outlives a replay lies in the buffers.

    Args:
        model: the model the loop runs.
        loop: called with the buffers and further keywords; works in place on "x_adv" and "peaks".
        warn: on a loop that cannot be captured, warn once and run it eagerly from then on, instead of raising.
    """

    def __init__(self, model: Callable[..., object], loop: Loop, *, warn: bool) -> None:
        self._model = model
        self._loop = loop
        self._warn = warn
        self._refused = False
        self._memory: dict[torch.device, Memory] = {}
        self._captures: OrderedDict[Hashable, Callable[[Buffers], Buffers]] = OrderedDict()

    def usable(self) -> bool:
        """Whether no capture has failed yet."""
        return not self._refused

    def __call__(self, buffers: Buffers, **keywords: Any) -> None:
        """Run the loop on `buffers`; "x_adv" and "peaks" are written. Other values never mean a new capture.

        Raises:
            RuntimeError: the loop cannot be captured, unless `warn`.
        """
        module = module_of(self._model)
        if module is None:
            self._refuse(
                "the model is a plain callable, whose weights cannot be watched; pass the module itself"
            )
            return self._loop(**buffers, **keywords)
        key = _key(module, buffers)
        replay = self._captures.pop(key, None)
        if replay is None:
            try:
                replay = capture(self._loop, buffers, keywords, self._memory)
            except CaptureError as error:
                self._refuse(str(error))
                return self._loop(**buffers, **keywords)
        self._captures[key] = replay
        if len(self._captures) > _CAPTURES_KEPT:
            self._captures.popitem(last=False)
        results = replay(buffers)
        for name in ("x_adv", "peaks"):
            buffers[name].copy_(results[name])
        return None

    def _refuse(self, reason: str) -> None:
        if not self._warn:
            raise RuntimeError(f"engine 'graph' cannot capture this attack: {reason}")
        self._refused = True
        warnings.warn(f"attack runs eagerly, not as a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)


class CaptureError(RuntimeError):
    """The loop does something a CUDA graph cannot hold, such as reading a value back to the host."""


def capture(
    loop: Loop, buffers: Buffers, keywords: dict[str, Any], memory: dict[torch.device, Memory]
) -> Callable[[Buffers], Buffers]:
    """Capture one run of the loop; returns a function that runs it on the values of other buffers of the same kind.

    Errors of the model itself pass through: they come up in the warm-up, before anything is captured. `memory` holds
    the pool and the stream that the captures of each device share.

    Raises:
        CaptureError: the loop runs, but cannot be captured.
    """
    device = buffers["x"].device
    static = {name: _static(value, device, buffers["x"].dtype) for name, value in buffers.items()}

    def load(values: Buffers) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device == device:
                static[name].copy_(value)
            else:
                static[name].fill_(float(value))

    if device not in memory:
        memory[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    pool, stream = memory[device]
    before = torch.cuda.current_stream(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        # cuDNN picks its algorithms and cuBLAS allocates its workspace now; both are impossible under capture.
        loop(**static, **keywords)
    before.wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    # Weight casts that autocast kept from before would be captured as constants and go stale with the next optimizer
    # step; those made during capture live in the graph's memory and must not leave it.
    torch.clear_autocast_cache()
    try:
        # Only this thread is held to what a capture allows: data pipelines may allocate in theirs.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            loop(**static, **keywords)
    except RuntimeError as error:
        del memory[device]
        # Ending a broken capture raises too, and says less than what broke it.
        cause = error.__context__ or error
        raise CaptureError(str(cause).splitlines()[0]) from error
    finally:
        # Where ending the capture fails, torch leaves its stream current.
        torch.cuda.set_stream(before)
        torch.clear_autocast_cache()

    def replay(values: Buffers) -> Buffers:
        load(values)
        graph.replay()
        return static

    return replay


def _static(value: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor) and value.device == device:
        return value.clone()
    return torch.full((), float(value), device=device, dtype=dtype)


def _key(module: nn.Module, buffers: Buffers) -> Hashable:
    """Everything a capture is only good for."""
    kinds = tuple(
        (name, value.shape, value.stride(), value.dtype, value.device)
        if isinstance(value, Tensor) and value.dim()
        else name
        for name, value in buffers.items()
    )
    device = buffers["x"].device.type
    precision = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    weights = tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
    return kinds, precision, active_backend(), id(module), weights
