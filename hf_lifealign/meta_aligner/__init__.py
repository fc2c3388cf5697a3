"""Meta-Aligner (Meal, arXiv 2604.24178): several objectives at once, with prompt-dependent preference weights."""
