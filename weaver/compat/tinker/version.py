"""The version of Tinker's SDK whose API this is."""

from typing import Final

__title__: Final = "tinker"
__version__: Final = "0.38.0"
