"""What runs beside vLLM, in a process and usually an environment of its own, where weaver need not be installed.

Its modules import the standard library, numpy, and what comes with vLLM; and each other, relatively.
"""
