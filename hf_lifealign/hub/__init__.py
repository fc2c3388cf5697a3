"""Versioned adapters on the Hub: what a revision holds, publishing, fetching, and the log of a repository."""
