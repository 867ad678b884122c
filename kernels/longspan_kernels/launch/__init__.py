"""How any Triton kernel of ours starts: a cached launcher, CUDA graphs, and whether Triton runs here."""
