"""DNALongBench (arXiv:2501.01945): the layout of its configs, the pairs that tables list, and the data module."""
