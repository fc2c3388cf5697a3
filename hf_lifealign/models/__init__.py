"""Which model a run starts from: Hub ids, local folders, and the small model that comes as a package."""

from hf_lifealign.models.embedded import EMBEDDED_MODELS, find_base, public_name, resolve_model

__all__ = ["EMBEDDED_MODELS", "find_base", "public_name", "resolve_model"]
