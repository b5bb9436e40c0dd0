"""For every test: threads as the server sets them, before torch is imported, and no network."""

import os

from weaver.config import prepare_threads

prepare_threads()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
