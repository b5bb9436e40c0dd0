"""Weaver's own Python API: clients of a service in this process, or of a server by its URL. `weaver` has its names."""
