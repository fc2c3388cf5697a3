"""Prompts find the task they belong to: a gate over features of the base, and policies that it routes."""

from hf_lifealign.routing.features import prompt_features
from hf_lifealign.routing.gate import Gate, view_weights
from hf_lifealign.routing.loading import RoutedPolicy, load_routed

__all__ = ["Gate", "RoutedPolicy", "load_routed", "prompt_features", "view_weights"]
