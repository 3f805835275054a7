"""Triton kernels, one module per op. Imported as `robustfast.kernels`, never as `kernels`."""

from robustfast.kernels.interpreter import mend

mend()
