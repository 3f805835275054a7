"""The whole attack loop as one CUDA graph: at small batches the host cannot launch ten passes fast enough."""

from __future__ import annotations

import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustfast.attacks.folding import active_plans
from robustfast.attacks.modes import module_of
from robustfast.ops.backend import active_backend
from robustfast.streams import captured, two_streams_wanted

__all__ = [
    "CaptureError",
    "GraphedLoop",
    "addresses",
    "eager_loops",
    "loops_are_eager",
    "on_stream",
    "record",
]

# A full batch and a last partial one, with and without autocast; and the sizes a batch shrinks to as samples are won.
_CAPTURES_KEPT = 8

Buffers = dict[str, Any]
Loop = Callable[..., None]
Memory = tuple[Any, torch.cuda.Stream]
Result = TypeVar("Result")

_eager_loops = 0


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
        loop: called with the buffers and further keywords; works in place on those in `writes`.
        writes: names of the buffers that the loop changes; "x" and other buffers are its own to read.
        warn: on a loop that cannot be captured, warn once and run it eagerly from then on, instead of raising.
    """

    def __init__(
        self,
        model: Callable[..., object],
        loop: Loop,
        *,
        warn: bool,
        writes: Sequence[str] = ("x_adv", "peaks"),
    ) -> None:
        self._model = model
        self.loop = loop
        self._writes = tuple(writes)
        self._warn = warn
        self._refused = False
        self._memory: dict[torch.device, Memory] = {}
        self._captures: OrderedDict[Hashable, tuple[torch.device, Callable[[Buffers], Buffers]]] = (
            OrderedDict()
        )

    def usable(self) -> bool:
        """Whether no capture has failed yet."""
        return not self._refused

    def __call__(self, buffers: Buffers, **keywords: Any) -> None:
        """Run the loop on `buffers`, which include "x"; those of `writes` are written.

        Other values in the buffers never mean a new capture; other keywords do.

        Raises:
            RuntimeError: the loop cannot be captured, unless `warn`.
        """
        module = module_of(self._model)
        if module is None:
            self._refuse(
                "the model is a plain callable, whose weights cannot be watched; pass the module itself"
            )
            return self.loop(**buffers, **keywords)
        key = (*_key(module, buffers), tuple(sorted(keywords.items())))
        found = self._captures.pop(key, None)
        if found is None:
            try:
                replay = capture(self.loop, buffers, keywords, self._memory)
            except CaptureError as error:
                self._refuse(str(error))
                return self.loop(**buffers, **keywords)
            found = buffers["x"].device, replay
        self._captures[key] = found
        if len(self._captures) > _CAPTURES_KEPT:
            self._captures.popitem(last=False)
            # A pool dies with the last graph that captured into it, and torch refuses to capture into a dead one.
            used = {device for device, _ in self._captures.values()}
            self._memory = {device: memory for device, memory in self._memory.items() if device in used}
        results = found[1](buffers)
        for name in self._writes:
            buffers[name].copy_(results[name])
        return None

    def _refuse(self, reason: str) -> None:
        if not self._warn:
            raise RuntimeError(f"engine 'graph' cannot capture this attack: {reason}")
        self._refused = True
        warnings.warn(f"attack runs eagerly, not as a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)


class CaptureError(RuntimeError):
    """The work does something a CUDA graph cannot hold, such as reading a value back to the host."""


@contextmanager
def eager_loops() -> Iterator[None]:
    """Let attacks run their loops eagerly inside the block: a graph that holds more than the attack is under way."""
    global _eager_loops
    _eager_loops += 1
    try:
        yield
    finally:
        _eager_loops -= 1


def loops_are_eager(device: torch.device) -> bool:
    """Whether an attack on `device` is part of a larger graph, its own or a caller's: CUDA graphs do not nest."""
    return _eager_loops > 0 or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


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

    def run() -> None:
        loop(**static, **keywords)

    if device not in memory:
        memory[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    pool, stream = memory[device]
    with captured():
        with on_stream(stream):
            # cuDNN picks its algorithms, cuBLAS allocates its workspace and Triton compiles now: none of it is possible
            # under capture.
            run()
            with refuse_waits():
                run()
        try:
            graph, _ = record(run, stream, pool)
        except CaptureError:
            del memory[device]
            raise

    def replay(values: Buffers) -> Buffers:
        load(values)
        graph.replay()
        return static

    return replay


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Queue the block's work on `stream`, after what the current stream holds and before what it will hold."""
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


@contextmanager
def refuse_waits() -> Iterator[None]:
    """Make what waits for the device an error that names the line.

    A capture would end at that line too, but in ruins: up to 2.11 torch's allocator then takes the capture for one
    that still runs, and every later one fails.

    Raises:
        CaptureError: something inside the block waited.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise CaptureError(f"{where.filename}:{where.lineno} waits for the device: {where.line}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def record(
    run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture what `run` queues on `stream`, where it has run before; nothing is computed until the graph's replay.

    Args:
        run: takes its inputs from tensors that outlive the graph.
        stream: to capture on, never the default one.
        pool: `torch.cuda.graph_pool_handle()` of graphs that share their memory; None: a pool of its own.

    Returns:
        The graph, and what `run` returned: tensors whose values each replay writes anew.

    Raises:
        CaptureError: it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    pool = pool if pool is not None else torch.cuda.graph_pool_handle()
    # The stream's device becomes the current one, which torch's capture synchronises and empties of cached memory.
    with torch.cuda.device(stream.device):
        before = torch.cuda.current_stream()
        # Weight casts that autocast kept from before would be captured as constants and go stale with the next
        # optimizer step; those made during capture live in the graph's memory and must not leave it.
        torch.clear_autocast_cache()
        try:
            # Only this thread is held to what a capture allows: data pipelines may allocate in theirs.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                result = run()
        except RuntimeError as error:
            # Up to 2.11 torch leaves its allocator in the capture where ending it failed (pytorch#180395); where it
            # did not fail, or in later releases, there is nothing left to end.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device.index, pool)
            # Ending a broken capture raises too, and says less than what broke it.
            cause = error.__context__ or error
            raise CaptureError((str(cause) or type(cause).__name__).splitlines()[0]) from error
        finally:
            # Where ending the capture fails, torch leaves its stream current.
            torch.cuda.set_stream(before)
            torch.clear_autocast_cache()
    return graph, result


def _static(value: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor) and value.device == device:
        return value.clone()
    return torch.full((), float(value), device=device, dtype=dtype)


def _key(module: nn.Module, buffers: Buffers) -> tuple[Hashable, ...]:
    """Everything a capture is only good for."""
    kinds = tuple(
        (name, value.shape, value.stride(), value.dtype, value.device)
        if isinstance(value, Tensor) and value.dim()
        else name
        for name, value in buffers.items()
    )
    device = buffers["x"].device.type
    precision = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    precision = (*precision, active_backend(), two_streams_wanted(), active_plans())
    return kinds, precision, id(module), addresses(module)


def addresses(module: nn.Module) -> tuple[int, ...]:
    """Where the parameters and buffers of a module lie: a graph reads them there."""
    return tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
