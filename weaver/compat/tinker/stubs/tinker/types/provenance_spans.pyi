from weaver.compat.tinker.types.provenance_spans import *
