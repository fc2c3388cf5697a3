"""Which judge a text or an object means."""

from typing import Any

from hf_lifealign.judges.protocol import Judge


def resolve_judge(spec: Judge | str) -> Judge:
    """The judge that is meant.

    Args:
        spec (`Callable` or `str`): a judge as it is; the name of one in the entry-point group `hf_lifealign.judges`,
            e.g. `"refusal"`; or `"package.module:function"`, which is imported.

    Raises:
        ValueError: if no installed package offers that name, naming those there are; or if it is a class, or cannot be
            called.
        ImportError: if what it names cannot be imported.
    """
    from hf_lifealign.strategies.registry import JUDGES, available, imported, is_function_path, load

    if not isinstance(spec, str):
        return _judge(spec, f"{spec!r}", "")
    spec = spec.strip()
    names = available(JUDGES)
    if spec in names:
        return _judge(load(JUDGES, spec), f"{spec!r}", f" It is {names[spec].value} of an installed package.")
    if is_function_path(spec):
        return _judge(imported(spec, "judge"), f"{spec!r}", "")
    try:
        return load(JUDGES, spec)
    except ValueError as error:
        raise ValueError(f"{error} A function of your own is named 'package.module:function'.") from None


def _judge(found: Any, spec: str, where: str) -> Judge:
    """What was found, if it can judge.

    Raises:
        ValueError: if not, saying what to write instead.
    """
    if isinstance(found, type):
        raise ValueError(
            f"You set the judge {spec}, the class {found.__name__}.{where} A judge is a function or an object that is "
            f"made already: pass {found.__name__}(...), or write `judge = {found.__name__}(...)` in a module of yours "
            "and set 'package.module:judge'."
        )
    if not callable(found):
        raise ValueError(
            f"You set the judge {spec}, which is of the type {type(found).__name__} and cannot be called.{where} Set a "
            "function of prompts, answers and references, the name of a judge, or 'package.module:function'."
        )
    return found
