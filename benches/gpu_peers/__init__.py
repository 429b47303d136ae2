"""Comparisons on a GPU with PyTorch's attention kernels; `benches/peers.py` runs them."""
