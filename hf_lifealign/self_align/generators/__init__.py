"""Who writes the texts: a model on this machine, by transformers or vLLM, a server, or a script; all behind
[`Generator`]."""

from hf_lifealign.self_align.generators.cache import CallCache
from hf_lifealign.self_align.generators.local import TransformersGenerator
from hf_lifealign.self_align.generators.protocol import Call, Generation, Generator, GeneratorError, Sampling
from hf_lifealign.self_align.generators.scripted import ScriptedGenerator
from hf_lifealign.self_align.generators.server import ServerGenerator
from hf_lifealign.self_align.generators.vllm import VLLMGenerator

__all__ = [
    "Call",
    "CallCache",
    "Generation",
    "Generator",
    "GeneratorError",
    "Sampling",
    "ScriptedGenerator",
    "ServerGenerator",
    "TransformersGenerator",
    "VLLMGenerator",
]
