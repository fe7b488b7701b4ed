"""The styles that come with the examples."""

from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "models"


def default_bundle() -> Path:
    """Return the first bundle of ``examples/models``.

    Raises:
        ValueError: there is none.
    """
    found = all_bundles()
    if not found:
        raise ValueError(f"there is no style in {MODELS}; give one with --model BUNDLE")
    return found[0]


def all_bundles() -> list[Path]:
    """Return the bundles of ``examples/models``, in the order of their names."""
    return sorted(path for path in MODELS.glob("*.topcoat") if path.is_dir())
