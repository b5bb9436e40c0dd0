"""weaver: fine-tune language models with your own loop, on your own machines."""

__version__ = "0.1.0"
__all__ = ["__version__"]
