"""Several strategies on one stream: which of them keeps more of what was learnt, and how surely."""
