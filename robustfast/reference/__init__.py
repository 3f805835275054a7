"""The definition of right: every op in plain PyTorch."""
