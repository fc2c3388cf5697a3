"""PEFT's orthogonal subspace fine-tuning (arXiv 2504.07097), kept orthogonal."""

from typing import Any

from peft.tuners.osf.layer import OSFLayer


def keep_projections(model: Any) -> None:
    """Hangs the gradient projections of OSF layers on the parameters that are trained; other models stay as they are.

    PEFT makes the parameters of a half-precision base anew in float32 after it has hung its hooks on them
    (`autocast_adapter_dtype`, peft 0.21): the hooks stay with what is thrown away, and nothing says so. Of the gradient
    of such a layer most lies in the directions that it is meant to keep. Called again it changes nothing.

    Args:
        model: a `PeftModel`, or any other.
    """
    for module in model.modules():
        if isinstance(module, OSFLayer):
            module._detach_hooks()
            for name in list(module.osf_svd_params):
                # a frozen copy, as a trainer's reference is, has no gradients to project
                if all(parameter.requires_grad for parameter in module.osf_svd_params[name].parameters()):
                    module._attach_hooks(name)
