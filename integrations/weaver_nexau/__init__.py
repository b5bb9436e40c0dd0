"""Agents of NexAU, trained on weaver: their turns become data with exactly the tokens that were sampled."""
