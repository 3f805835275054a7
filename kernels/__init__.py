"""Triton kernels, one module per op. Imported as `robustfast.kernels`, never as `kernels`."""
