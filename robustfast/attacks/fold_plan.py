"""How a frozen encoder runs in an attack: batch norms folded, ReLUs fused, weights cast once."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from robustfast.attacks.fold_trace import ROOT, RefusedError
from robustfast.attacks.fold_weights import Norm, Weights
from robustfast.ops import affine_relu

__all__ = ["Plan", "agrees"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RELUS = (F.relu, torch.relu, torch.relu_, torch.nn.functional.relu_)
_SUMS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.imatmul, operator.setitem, operator.delitem,
)  # fmt: skip
# What is asked of a tensor without reading its values.
_KINDS = ("shape", "ndim", "dtype", "device", "is_cuda", "size", "dim", "ndimension", "numel", "stride")
# Results in memory of their own: what is written there in place is seen nowhere else.
_FRESH_MODULES = (
    *_CONVOLUTIONS, *_NORMS, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.GroupNorm, nn.LayerNorm,
    nn.ConvTranspose2d, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU,
)  # fmt: skip
_FRESH = (
    *_SUMS, *_RELUS, F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.linear, F.max_pool2d, F.avg_pool2d, torch.cat,
    torch.matmul, operator.sub, operator.mul, operator.truediv, torch.mul, torch.sub, torch.sigmoid, torch.tanh,
)  # fmt: skip

_serials = count()


class Plan:
    """A frozen encoder's forward, made anew from its graph.

    - A batch norm is folded into the convolution before it where nothing else reads that convolution's output: the
      weight times scale, and the shift into the ReLU behind it, or into the convolution's bias where there is none.
    - A batch norm that cannot be folded and the ReLU behind it are one `affine_relu`, with the sum before it where a
      sum is what it reads. Where the sum is also read elsewhere, that op keeps it.
    - A convolution's bias, and a sum of them, joins the ReLU too.
    - Under autocast, weights of convolutions and linear layers are cast once, not by autocast.
    - Everything else is run as it is.

    In exact arithmetic the result is that of the module, and so is the gradient by the input. There is none by weights.

    Args:
        graph: of the module, in eval mode, as `robustfast.attacks.fold_trace.trace` gives it; is changed.
        parts: the module's parts by name, itself under "".
        half: the dtype of autocast; None where it is off.

    Attributes:
        serial: a number that no other plan has: its buffers lie at addresses of their own.
        folded: batch norms that are folded into a convolution.
        fused: `affine_relu` calls.
        code: the Python that runs.
        checked: whether it was held against its module (`agrees`).
        wrong: whether it was then found to give other results.

    Raises:
        RefusedError: there is nothing to fold or to fuse, or something is written in place that others read.
    """

    def __init__(self, graph: fx.Graph, parts: Mapping[str, nn.Module], half: torch.dtype | None) -> None:
        self.serial = next(_serials)
        self.checked = self.wrong = False
        builder = _Builder(graph, parts, half)
        new = builder.build()
        self.folded, self.fused = builder.folded, builder.fused
        if not self.folded + self.fused:
            raise RefusedError("it has no batch norm or ReLU to fold or to fuse")
        self._weights = builder.weights
        self._called, self._read = builder.called, builder.read
        made = new.python_code("self")
        self.code = made.src
        exec(compile(made.src, f"<plan {self.serial}>", "exec"), found := dict(made.globals))
        self._forward: Callable[[SimpleNamespace, Tensor], Any] = found["forward"]

    @property
    def allocated(self) -> bool:
        """Whether its buffers are there."""
        return self._weights.allocated

    def prepare(self, parts: Mapping[str, nn.Module]) -> Callable[[Tensor], Any]:
        """The forward with the weights that the module's parts have now; to ask for again when they have changed."""

        def find(name: str) -> Any:
            return _find(parts, name)

        bound = SimpleNamespace(**self._weights.prepare(find))
        for name, source in self._read.items():
            setattr(bound, name, find(source))
        for name, source in self._called.items():
            part = parts[source]
            setattr(bound, name, part._conv_forward if type(part) in _CONVOLUTIONS else part)
        forward = self._forward
        return lambda x: forward(bound, x)


@torch.no_grad()
def agrees(plan: Callable[[Tensor], Any], module: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Whether a plan gives for images what its module gives, up to rounding; waits for the device.

    Not every misunderstanding of a module's code is an error: ``isinstance(x, Tensor)`` is false while it is traced.
    Draws of random numbers are those of one call, and the global generators stay where they are.
    """
    x = x.detach()
    expected = _tensors(module, x)
    try:
        ours = _tensors(plan, x)
    # Whatever it fails with, its module did not.
    except Exception:
        return False
    if [t.shape for t in expected] != [t.shape for t in ours]:
        return False
    for t, other in zip(expected, ours, strict=True):
        within = {torch.float64: 1e-6, torch.float32: 0.01}.get(t.dtype, 0.25)
        if torch.is_autocast_enabled(x.device.type):
            within = 0.25
        t, other = t.to(torch.float64), other.to(torch.float64)
        if t.isfinite().all() and (other - t).norm() > within * t.norm():
            return False
    return True


def _tensors(call: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        return [leaf for leaf in tree_leaves(call(x)) if isinstance(leaf, Tensor)]


def sum_affine_relu(
    a: Tensor, b: Tensor, scale: Tensor | None, shift: Tensor, keep_sum: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """`affine_relu` of a + b; where they differ in shape or dtype, as torch broadcasts and promotes them."""
    if a.shape == b.shape and a.dtype == b.dtype:
        return affine_relu(a, scale, shift, residual=b, keep_sum=keep_sum)
    total = a + b
    if total.shape[1] == len(shift):
        y: Any = affine_relu(total, scale, shift)
    else:
        per_channel = (-1, *[1] * (total.dim() - 2))
        scaled = total if scale is None else total * scale.view(per_channel)
        y = torch.relu(scaled + shift.view(per_channel)).to(total.dtype)
    return (y, total) if keep_sum else y


class _Builder:
    """Makes the graph of a plan from that of a module: one walk finds what belongs together, a second one writes."""

    def __init__(self, graph: fx.Graph, parts: Mapping[str, nn.Module], half: torch.dtype | None) -> None:
        self._old, self._parts, self._half = graph, parts, half
        self.called: dict[str, str] = {}
        self.read: dict[str, str] = {}
        self.folded = self.fused = 0
        tensors = [
            t for part in parts.values() for t in (*part._parameters.values(), *part._buffers.values())
        ]
        double = any(t is not None and t.dtype == torch.float64 for t in tensors)
        self.wide = torch.float64 if double else torch.float32
        self.weights = Weights(self.wide)
        # Old nodes: a convolution -> the norm folded into it, and its number; a ReLU -> what it is made of.
        self._norm_of: dict[fx.Node, tuple[fx.Node, int]] = {}
        # Convolutions whose bias, or the shift of the norm folded into them, is added elsewhere.
        self._raw: set[fx.Node] = set()
        self._relus: dict[fx.Node, _Relu] = {}
        # Where a fused call is written: at the sum where that is kept, else at the ReLU.
        self._at: dict[fx.Node, fx.Node] = {}
        self._left_out: set[fx.Node] = set()
        self._numbers = count()

    def build(self) -> fx.Graph:
        self._drop_identities()
        self._check_writes()
        for node in self._old.nodes:
            self._match_relu(node)
        for node in self._old.nodes:
            norm = self._norm(node)
            if norm and node not in self._left_out and self._foldable(node):
                self._fold(node.args[0], node, norm)
        return self._write()

    # Finding.

    def _part(self, node: fx.Node) -> nn.Module | None:
        return self._parts[_own(node.target)] if node.op == "call_module" else None

    def _drop_identities(self) -> None:
        """Take out what hands on its input in eval mode."""
        for node in list(self._old.nodes):
            part = self._part(node)
            dropped = isinstance(part, nn.Identity) or (
                isinstance(part, _DropoutNd) and type(part).__module__.startswith("torch.nn")
            )
            if node.op == "call_function" and node.target is F.dropout:
                dropped = _argument(node, 2, "training", True) is False
            if dropped and node.args and isinstance(node.args[0], fx.Node):
                node.replace_all_uses_with(node.args[0])
                self._old.erase_node(node)

    def _check_writes(self) -> None:
        """Refuse writes in place whose order matters: fused calls come earlier or later than what they replace."""
        for node in self._old.nodes:
            if self._writes(node):
                here = node.args[0] if node.args else None
                alone = isinstance(here, fx.Node) and list(here.users) == [node] and self._fresh(here)
                if not alone or "out" in node.kwargs:
                    raise RefusedError("its forward writes in place on what others may read")

    def _writes(self, node: fx.Node) -> bool:
        part = self._part(node)
        if part is not None:
            return bool(getattr(part, "inplace", False))
        if node.op not in ("call_function", "call_method"):
            return False
        if "out" in node.kwargs or node.target in _IN_PLACE:
            return True
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.startswith("_"):
            return True
        return bool(_given(node, "inplace"))

    def _fresh(self, node: fx.Node) -> bool:
        if self._writes(node):
            return True  # checked before: what it wrote on is fresh, and read by nothing else
        part = self._part(node)
        if part is not None:
            return type(part) in _FRESH_MODULES
        return node.op == "call_function" and node.target in _FRESH

    def _convolution(self, node: Any) -> bool:
        alone = isinstance(node, fx.Node) and type(self._part(node)) in _CONVOLUTIONS
        return alone and len(node.args) == 1 and not node.kwargs

    def _norm(self, node: Any) -> Norm | None:
        """A batch norm by running statistics, as a module or a function."""
        if not isinstance(node, fx.Node):
            return None
        part = self._part(node)
        if type(part) in _NORMS and len(node.args) == 1 and not node.kwargs and part.running_mean is not None:
            at = _own(node.target)
            affine = part.weight is not None, part.bias is not None
            return Norm(
                f"{at}.running_mean",
                f"{at}.running_var",
                f"{at}.weight" if affine[0] else None,
                f"{at}.bias" if affine[1] else None,
                part.eps,
            )
        if node.op != "call_function" or node.target is not F.batch_norm:
            return None
        given = [
            _argument(node, position, name, None)
            for position, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1)
        ]
        if _argument(node, 5, "training", False) is not False or None in given[:2]:
            return None
        if not isinstance(node.args[0], fx.Node) or any(
            source is not None and not (isinstance(source, fx.Node) and source.op == "get_attr")
            for source in given
        ):
            return None
        mean, var, weight, bias = (None if source is None else _own(source.target) for source in given)
        eps = _argument(node, 7, "eps", 1e-5)
        return Norm(mean, var, weight, bias, eps) if isinstance(eps, float) else None

    def _relu_input(self, node: fx.Node) -> fx.Node | None:
        """What a ReLU reads, in any of its spellings."""
        is_relu = type(self._part(node)) is nn.ReLU
        is_relu |= node.op == "call_function" and node.target in _RELUS
        is_relu |= node.op == "call_method" and node.target in ("relu", "relu_")
        return node.args[0] if is_relu and node.args and isinstance(node.args[0], fx.Node) else None

    def _summands(self, node: Any) -> tuple[fx.Node, fx.Node] | None:
        """The two tensors that a sum adds up."""
        if not isinstance(node, fx.Node) or len(node.args) != 2 or node.kwargs:
            return None
        method = node.op == "call_method" and node.target in ("add", "add_")
        if not (method or (node.op == "call_function" and node.target in _SUMS)):
            return None
        a, b = node.args
        both = isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b
        return (a, b) if both and not {a.op, b.op} & {"get_attr"} else None

    def _foldable(self, norm: fx.Node) -> bool:
        """Whether a norm reads a convolution whose values nothing else reads."""
        before = norm.args[0]
        return self._convolution(before) and _readers(before) == [norm] and before not in self._norm_of

    def _bias_of(self, convolution: fx.Node) -> str | None:
        return f"{_own(convolution.target)}.bias" if self._part(convolution).bias is not None else None

    def _fold(self, convolution: fx.Node, node: fx.Node, norm: Norm) -> int:
        bias = self._bias_of(convolution)
        number = self.weights.norm(_with(norm, (bias,) if bias else ()))
        self._norm_of[convolution] = node, number
        self._left_out.add(node)
        self.folded += 1
        return number

    def _match_relu(self, node: fx.Node) -> None:
        before = self._relu_input(node)
        if before is None or list(before.users) != [node]:
            return
        norm = self._norm(before)
        if norm is not None:
            self._match_norm(node, before, norm)
        elif self._convolution(before) and (bias := self._bias_of(before)):
            self._raw.add(before)
            self._fuse(node, _Relu(before, None, shift=bias))
        elif summands := self._summands(before):
            self._match_sum(node, before, summands)

    def _match_norm(self, relu: fx.Node, node: fx.Node, norm: Norm) -> None:
        """Norm, then ReLU."""
        before = node.args[0]
        if self._foldable(node):
            number = self._fold(before, node, norm)
            self._raw.add(before)
            self._fuse(relu, _Relu(before, None, shift=number))
            return
        self._left_out.add(node)
        if before not in self._at and (summands := self._summands(before)):
            kept = list(before.users) != [node]
            biases: list[str] = []
            if not kept:
                self._left_out.add(before)
                biases = [bias for part in summands if (bias := self._take_bias(part, before))]
            number = self.weights.norm(_with(norm, tuple(biases)))
            self._fuse(relu, _Relu(*summands, scale=number, shift=number, sum=before if kept else None))
        else:
            number = self.weights.norm(norm)
            self._fuse(relu, _Relu(before, None, scale=number, shift=number))

    def _take_bias(self, part: fx.Node, reader: fx.Node) -> str | None:
        """The bias of a convolution that nothing but `reader` reads, which is then added elsewhere."""
        if not self._convolution(part) or list(part.users) != [reader] or part in self._norm_of:
            return None
        bias = self._bias_of(part)
        if bias is not None:
            self._raw.add(part)
        return bias

    def _match_sum(self, relu: fx.Node, total: fx.Node, summands: tuple[fx.Node, fx.Node]) -> None:
        """Sum, then ReLU, where a norm that can be folded or a bias is among what is added up."""
        operands: list[fx.Node] = []
        shifts: list[str | int] = []
        for part in summands:
            norm = self._norm(part)
            if norm and list(part.users) == [total] and self._foldable(part):
                operands.append(part.args[0])
                shifts.append(self._fold(part.args[0], part, norm))
                self._raw.add(part.args[0])
            else:
                operands.append(part)
                if bias := self._take_bias(part, total):
                    shifts.append(bias)
        if shifts:
            self._left_out.add(total)
            self._fuse(relu, _Relu(*operands, shift=shifts[0], second=shifts[1] if shifts[1:] else None))

    def _fuse(self, relu: fx.Node, made_of: _Relu) -> None:
        self._relus[relu] = made_of
        self._at[made_of.sum if made_of.sum is not None else relu] = relu
        self.fused += 1

    # Writing.

    def _write(self) -> fx.Graph:
        self._new = fx.Graph()
        self._values: dict[fx.Node, fx.Node] = {}
        for node in self._old.nodes:
            if node in self._at:
                self._write_relu(self._at[node])
            elif node in self._left_out or node in self._relus:
                continue
            elif node.op == "call_module":
                self._values[node] = self._write_module(node)
            elif node.op == "get_attr":
                name = f"t{len(self.read)}"
                self.read[name] = _own(node.target)
                self._values[node] = self._new.get_attr(name)
            else:
                self._values[node] = self._new.node_copy(node, self._values.__getitem__)
        for node in reversed(self._new.nodes):
            if node.op == "get_attr" and not node.users:
                self._new.erase_node(node)
        return self._new

    def _write_relu(self, relu: fx.Node) -> None:
        made_of = self._relus[relu]
        a = self._values[made_of.a]
        scale = None if made_of.scale is None else self._new.get_attr(f"scale{made_of.scale}")
        shift = self._shift(made_of)
        if made_of.b is None:
            self._values[relu] = self._new.call_function(affine_relu, (a, scale, shift))
            return
        b, keep = self._values[made_of.b], made_of.sum is not None
        done = self._new.call_function(sum_affine_relu, (a, b, scale, shift, keep))
        if made_of.sum is None:
            self._values[relu] = done
        else:
            self._values[relu] = self._new.call_function(operator.getitem, (done, 0))
            self._values[made_of.sum] = self._new.call_function(operator.getitem, (done, 1))

    def _shift(self, made_of: _Relu) -> fx.Node:
        shift, second = made_of.shift, made_of.second
        if second is not None:
            name = self.weights.sum_of_shifts(f"sum{self._number()}", shift, second)
        elif isinstance(shift, int):
            name = f"shift{shift}"
        else:
            name = self.weights.cast(f"bias{self._number()}", shift, self.wide)
        return self._new.get_attr(name)

    def _write_module(self, node: fx.Node) -> fx.Node:
        part, at = self._part(node), _own(node.target)
        if self._convolution(node):
            weight = self._weight(node, part, at)
            bias = None if node in self._raw else self._conv_bias(node, part, at)
            x = self._values[node.args[0]]
            new = self._new.call_module(self._call(at), (x, weight, bias))
            if node in self._norm_of:
                self._values[self._norm_of[node][0]] = new
            return new
        if type(part) is nn.Linear and self._half is not None and len(node.args) == 1 and not node.kwargs:
            dtype = self._dtype(part.weight)
            bias = None if part.bias is None else self._cast(f"{at}.bias", dtype)
            return self._new.call_function(
                F.linear, (self._values[node.args[0]], self._cast(f"{at}.weight", dtype), bias)
            )
        copied = self._new.node_copy(node, self._values.__getitem__)
        copied.target = self._call(at)
        return copied

    def _weight(self, node: fx.Node, part: nn.Module, at: str) -> fx.Node:
        dtype = self._dtype(part.weight)
        if node not in self._norm_of:
            return self._cast(f"{at}.weight", dtype)
        _, number = self._norm_of[node]
        return self._new.get_attr(self.weights.fold(f"folded{self._number()}", f"{at}.weight", number, dtype))

    def _conv_bias(self, node: fx.Node, part: nn.Module, at: str) -> fx.Node | None:
        dtype = self._dtype(part.weight)
        if node in self._norm_of:
            _, number = self._norm_of[node]
            return self._new.get_attr(self.weights.shift_in(f"short{self._number()}", number, dtype))
        return None if part.bias is None else self._cast(f"{at}.bias", dtype)

    def _cast(self, source: str, dtype: torch.dtype) -> fx.Node:
        return self._new.get_attr(self.weights.cast(f"cast{self._number()}", source, dtype))

    def _call(self, at: str) -> str:
        name = f"m{len(self.called)}"
        self.called[name] = at
        return name

    def _number(self) -> int:
        return next(self._numbers)

    def _dtype(self, weight: Tensor) -> torch.dtype:
        """What autocast would have of a weight; it leaves float64 alone."""
        return weight.dtype if self._half is None or weight.dtype == torch.float64 else self._half


class _Relu:
    """What a fused ReLU reads: a, or a + b, times the scale of a norm, plus a shift.

    Attributes:
        shift, second: the number of a norm, or the name of a bias; both are added.
        sum: the old node whose value a + b is, where others read it.
    """

    def __init__(
        self,
        a: fx.Node,
        b: fx.Node | None,
        *,
        shift: str | int,
        second: str | int | None = None,
        scale: int | None = None,
        sum: fx.Node | None = None,
    ) -> None:
        self.a, self.b, self.shift, self.second, self.scale, self.sum = a, b, shift, second, scale, sum


def _own(target: Any) -> str:
    """A name in the traced graph as the module itself has it."""
    return "" if target == ROOT[:-1] else target.removeprefix(ROOT)


def _find(parts: Mapping[str, nn.Module], name: str) -> Any:
    at, _, attribute = name.rpartition(".")
    return getattr(parts[at], attribute)


def _with(norm: Norm, before: tuple[str, ...]) -> Norm:
    return Norm(norm.mean, norm.var, norm.weight, norm.bias, norm.eps, before)


def _readers(node: fx.Node) -> list[fx.Node]:
    """The users of a value, but for those that only ask for its shape or kind."""

    def asks(user: fx.Node) -> bool:
        if user.op == "call_method":
            return user.target in _KINDS
        return user.op == "call_function" and user.target is getattr and user.args[1] in _KINDS

    return [user for user in node.users if not asks(user)]


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _given(node: fx.Node, name: str) -> Any:
    """An argument of a function by its name, wherever it stands; None where the function has none."""
    if name in node.kwargs:
        return node.kwargs[name]
    if node.op != "call_function":
        return None
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    return bound.arguments.get(name)
