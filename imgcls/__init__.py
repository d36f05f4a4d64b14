"""Train an image classifier and score whole buckets with it, every image accounted for.

    import imgcls
    model = imgcls.load("REGISTRY/chest@production")
    model.predict(["a.png", "b.dcm"])

`load`, `train`, `score`, `evaluate`, `import_model` and `read`, with `Model` and `Prediction`, are
described in face.py. They are brought when first used: `import imgcls` alone loads no library.
"""

from typing import TYPE_CHECKING, Any

from imgcls import telemetry

if TYPE_CHECKING:
    from imgcls.face import (
        Model,
        Prediction,
        evaluate,
        import_model,
        load,
        read,
        score,
        train,
    )

__all__ = [
    "Model",
    "Prediction",
    "evaluate",
    "import_model",
    "load",
    "read",
    "score",
    "train",
]

telemetry.switch_off()


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the face has)
    """Bring a name of the Python face; importlib asks here for submodules, too."""
    if name not in __all__:
        raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
    from imgcls import face

    return getattr(face, name)


def __dir__() -> list[str]:
    """Return what is offered."""
    return sorted([*globals(), *__all__])
