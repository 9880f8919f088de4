"""Another processor, as a pytest plugin: results that may differ in their last bits between machines, differ.

    python -m pytest -p tests.last_bits --last-bits=7 tests/test_frames.py     # or make test-last-bits RULE=7

Elementary functions are not correctly rounded. Their last bit depends on the library (MKL, SLEEF, glibc) and on the
kernel that it picks for the processor at hand; sums and matrix products are taken in the order that suits its vectors.
A test that passes on one machine by its last bits fails on the next. With this plugin the machine at hand is the next
one. Equal arguments still give equal results, element by element, whatever the batch, the strides and the run: so
bitwise comparison of two runs of the same code stays possible, and comparison with a number computed otherwise is not.

**Functions** move by one unit in the last place, by the rule that ``--last-bits`` names: ``up`` (away from zero),
``down`` (towards it), or a seed from 0 to 76, which picks one or the other from the bits of each result. Results that a
library gets right on any machine stay: those with trailing zeros, such as ``exp(0)`` and ``log2(8)``, whole powers that
torch multiplies out, and the ends of ``linspace``. torch's ``sqrt`` moves: MKL's is wrong in one of ten float32 on
AMD. Half-precision functions are computed in float32 and
rounded, so that another last bit there shows in one result in 2^16; here in one in sixteen. Changed are torch's
elementwise functions with their in-place, ``out=`` and ``_foreach`` variants and their backward kernels, softmax,
normalisations, attention, normal and exponential draws, and decompositions of matrices; NumPy's functions; and those of
``math``.

**Sums**, norms, products of matrices and convolutions are taken in the reverse order, which leaves exact ones exact.

Left alone is what IEEE 754 defines to the last bit: ``+ - * /``, comparisons, conversions, ``math.sqrt``; also uniform
draws. Out of reach, and as the machine has them, are

* functions imported by name before the plugin (``from math import log`` in the standard library) and ``**`` of Python
  and NumPy numbers;
* what libraries compute in C: SciPy's special functions and integrators, ``numpy.linalg`` and NumPy's sums, the inside
  of torch's fused kernels (optimisers, recurrent networks), complex, sparse and fake tensors, and code that a compiler
  has fused;
* fused multiplication and addition (``addcmul``, ``addcdiv``, ``lerp``), and kernels that differ with the strides
  (``sigmoid`` of every second element, on AMD);
* other processes, and threads that Python did not start.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ELEMENTWISE = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "celu",
    "cos",
    "cosh",
    "digamma",
    "elu",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "gelu",
    "hypot",
    "igamma",
    "igammac",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "logaddexp",
    "logaddexp2",
    "logit",
    "mish",
    "polygamma",
    "pow",
    "selu",
    "sigmoid",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "sqrt",
    "special_bessel_j0",
    "special_bessel_j1",
    "special_bessel_y0",
    "special_bessel_y1",
    "special_entr",
    "special_erfcx",
    "special_i0",
    "special_i0e",
    "special_i1",
    "special_i1e",
    "special_log_ndtr",
    "special_modified_bessel_i0",
    "special_modified_bessel_i1",
    "special_modified_bessel_k0",
    "special_modified_bessel_k1",
    "special_ndtri",
    "special_scaled_modified_bessel_k0",
    "special_scaled_modified_bessel_k1",
    "special_xlog1py",
    "special_zeta",
    "tan",
    "tanh",
    "xlogy",
    "elu_backward",
    "gelu_backward",
    "log_sigmoid_backward",
    "log_sigmoid_forward",
    "mish_backward",
    "silu_backward",
    "softplus_backward",
]
DRAWN = ["normal", "normal_functional", "randn", "randn_like", "log_normal", "exponential", "cauchy", "_standard_gamma"]
WHOLE = [
    "_log_softmax",
    "_log_softmax_backward_data",
    "_safe_softmax",
    "_softmax",
    "_softmax_backward_data",
    "logcumsumexp",
    "logsumexp",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "native_batch_norm_backward",
    "native_group_norm",
    "native_group_norm_backward",
    "native_layer_norm",
    "native_layer_norm_backward",
    "_fused_rms_norm",
    "_fused_rms_norm_backward",
    "_weight_norm_interface",
    "_weight_norm_interface_backward",
    "convolution_backward",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_linalg_det",
    "_linalg_eigh",
    "_linalg_slogdet",
    "_linalg_solve_ex",
    "_linalg_svd",
    "linalg_cholesky_ex",
    "linalg_eig",
    "linalg_inv_ex",
    "linalg_lstsq",
    "linalg_lu_factor_ex",
    "linalg_matrix_exp",
    "linalg_qr",
    "linalg_solve_triangular",
    "cholesky_solve",
]
SPACED = ["linspace", "logspace"]
OF_MATH = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "gamma",
    "hypot",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "pow",
    "sin",
    "sinh",
    "tan",
    "tanh",
]
OF_NUMPY = [
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "cbrt",
    "cos",
    "cosh",
    "exp",
    "exp2",
    "expm1",
    "hypot",
    "log",
    "log10",
    "log1p",
    "log2",
    "logaddexp",
    "logaddexp2",
    "sin",
    "sinh",
    "tan",
    "tanh",
]
MULTIPLIED_OUT = (0, 1, 2, 3, -1, -2)
"""Exponents with which torch's ``pow`` is made of products and quotients."""

# How many zero bits at the end tell a result that is exact on any machine.
ZEROS: dict[Any, int] = {torch.float64: 20, torch.float32: 8, np.dtype("f8"): 20, np.dtype("f4"): 8}
INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32}
HALVES = (torch.bfloat16, torch.float16)

Rule = Callable[[Any], Any]
"""From the bits of results (integers, tensors or arrays of them) to what is added to them: 1 or -1."""


def rule_of(name: str) -> Rule:
    """``"up"``, ``"down"``, or a seed."""
    if name in ("up", "down"):
        return lambda bits: 1 if name == "up" else -1
    if not name.isdecimal() or int(name) > 76:
        raise pytest.UsageError(f"--last-bits: got {name!r}; pass up, down, or a seed from 0 to 76")
    near, far = 1 + int(name) % 7, 9 + int(name) // 7
    return lambda bits: 2 * ((bits >> near ^ bits >> far) & 1) - 1


# ---------------------------------------------------------------------------------------------------------- one result


def change(out: Tensor, rule: Rule) -> None:
    """Move the results in a tensor by one unit in the last place, where they are."""
    if type(out) not in (Tensor, torch.nn.Parameter) or out.device.type != "cpu" or out.layout != torch.strided:
        return
    # NumPy's operations on small arrays take a quarter of the time of torch's.
    if out.dtype in HALVES:
        bits = out.detach().view(torch.int16).numpy()
        bits += rule(bits) * ((bits & 15) == 5)
    elif out.dtype in ZEROS:
        bits = out.detach().view(INTEGERS[out.dtype]).numpy()
        bits += rule(bits) * ((bits & (2 ** ZEROS[out.dtype] - 1)) != 0)


def changed(value: Any, rule: Rule) -> Any:
    """A result of ``math`` or NumPy, moved by one unit in the last place."""
    array = np.asarray(value)
    if array.dtype not in ZEROS:
        return value
    bits = array.view(f"i{array.itemsize}")
    moved = bits + rule(bits) * ((bits & (2 ** ZEROS[array.dtype] - 1)) != 0)
    result = moved.astype(bits.dtype).view(array.dtype)
    if isinstance(value, np.ndarray):
        value[...] = result  # it may be the caller's ``out=``
        return value
    return type(value)(result)


# --------------------------------------------------------------------------------------------------------------- torch


def overloads(names: Iterable[str]) -> set[Any]:
    """Every overload of these functions: out of place, in place, ``out=``, and of lists of tensors."""
    found: set[Any] = set()
    for name in names:
        for variant in (name, f"{name}_", f"_foreach_{name}", f"_foreach_{name}_"):
            packet = getattr(torch.ops.aten, variant, None)
            found |= {getattr(packet, overload) for overload in packet.overloads()} if packet is not None else set()
    return found


FUNCTIONS = overloads([*ELEMENTWISE, *DRAWN, *WHOLE])
POWERS = overloads(["pow"])
GRIDS = overloads(SPACED)


def _over(x: Tensor, dim: Any) -> Tensor:
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return x.flip(*dims) if x.dim() else x


def _whole(x: Tensor, *rest: Any) -> tuple[Any, ...]:
    return (_over(x, None), *rest)


def _along(x: Tensor, dim: Any = None, *rest: Any) -> tuple[Any, ...]:
    return (_over(x, dim), dim, *rest)


def _norm(x: Tensor, order: Any = 2, dim: Any = None, *rest: Any) -> tuple[Any, ...]:
    return (_over(x, dim), order, dim, *rest)


def _product(a: Tensor, b: Tensor) -> tuple[Any, ...]:
    return (a.flip(-1), b.flip(-2 if b.dim() > 1 else -1))


def _added(bias: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Any, ...]:
    return (bias, *_product(a, b), *rest)


def _convolved(x: Tensor, weight: Tensor, bias: Any, *rest: Any) -> tuple[Any, ...]:
    *_, transposed, _, groups = rest
    if transposed or groups != 1:
        return (x, weight, bias, *rest)
    return (x.flip(-weight.dim() + 1), weight.flip(1), bias, *rest)


REVERSED: dict[str, Callable[..., tuple[Any, ...]]] = {
    "aten::sum": _whole,
    "aten::sum.dim_IntList": _along,
    "aten::sum.IntList_out": _along,
    "aten::mean": _whole,
    "aten::mean.dim": _along,
    "aten::mean.out": _along,
    "aten::var.correction": _along,
    "aten::var_mean.correction": _along,
    "aten::std.correction": _along,
    "aten::linalg_vector_norm": _norm,
    "aten::linalg_vector_norm.out": _norm,
    "aten::mm": _product,
    "aten::mm.out": _product,
    "aten::bmm": _product,
    "aten::bmm.out": _product,
    "aten::mv": _product,
    "aten::dot": _product,
    "aten::addmm": _added,
    "aten::addmm_": _added,
    "aten::addmv": _added,
    "aten::baddbmm": _added,
    "aten::baddbmm_": _added,
    "aten::convolution": _convolved,
}
"""Sums by the names of their overloads, and their positional arguments for the reverse order."""


class OtherProcessor(TorchDispatchMode):
    """Torch as another processor would compute, inside the context and on its thread."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let networks be compiled inside; torch does not compile under other modes."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reverse = REVERSED.get(func.name())
        if reverse is not None and _plain(args):
            args = reverse(*args)
        out = func(*args, **kwargs)
        if func in FUNCTIONS and not (func in POWERS and _multiplied_out(args[-1])):
            # In-place functions of lists return nothing.
            for result in _tensors(args[0] if out is None else out):
                change(result, self.rule)
        elif func in GRIDS:
            change(out[1:-1], self.rule)
        return out


def _multiplied_out(exponent: Any) -> bool:
    return isinstance(exponent, int | float) and exponent in MULTIPLIED_OUT


def _plain(args: Iterable[Any]) -> bool:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return all(
        type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and value.is_floating_point()
        for value in tensors
    )


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


# ------------------------------------------------------------------------------------------- math, NumPy, other threads


class Function:
    """A function of ``math`` or NumPy whose results are moved. NumPy's keep their methods, unchanged."""

    def __init__(self, function: Callable[..., Any], rule: Rule) -> None:
        self._function = function
        self._rule = rule

    def __call__(self, *args: Any, **options: Any) -> Any:
        return changed(self._function(*args, **options), self._rule)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


@contextmanager
def another_processor(name: str) -> Iterator[None]:
    """Torch, NumPy and ``math`` as another processor would compute, on this thread and on those started inside."""
    rule, run = rule_of(name), threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with OtherProcessor(rule):
            run(thread)

    with ExitStack() as stack:
        for module, names in ((math, OF_MATH), (np, OF_NUMPY)):
            for each in names:
                stack.enter_context(mock.patch.object(module, each, Function(getattr(module, each), rule)))
        stack.enter_context(mock.patch.object(threading.Thread, "run", run_there))
        stack.enter_context(OtherProcessor(rule))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--last-bits", default="0", help="up, down, or a seed from 0 to 76; see tests/last_bits.py")


def pytest_configure(config: pytest.Config) -> None:
    """For the whole session: numbers computed on import are other numbers too."""
    stack = ExitStack()
    stack.enter_context(another_processor(config.getoption("--last-bits")))
    config.add_cleanup(stack.close)


def pytest_report_header(config: pytest.Config) -> str:
    return f"last bits: {config.getoption('--last-bits')}"
