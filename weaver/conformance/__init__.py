"""Black-box checks of any server that speaks Tinker's protocol, through the installed `tinker` SDK alone.

Nothing of weaver's own is imported here (import-linter holds it), so a check knows only what a client can see. How
numbers are checked without looking inside is told in `weaver.conformance.lab`.
"""
