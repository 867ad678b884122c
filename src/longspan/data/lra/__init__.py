"""Long Range Arena (arXiv:2011.04006): its tasks made to the paper's specification, or read from its published files."""
