"""The Triton kernels of block-sparse attention. Imported lazily: Triton may be absent."""
