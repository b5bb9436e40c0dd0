"""A recipe for NexRL: how it trains on weaver. README.md says how to run it."""
