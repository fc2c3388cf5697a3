"""SELF-ALIGN: data for a new task, made from written principles (arXiv 2305.03047, 2310.05910)."""
