"""Alignment dynamics: how fast training moves an alignment score, and which forces move it (arXiv 2605.18309)."""
