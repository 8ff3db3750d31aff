"""The tuner's inner loops: in plain torch, and compiled for the processor at hand."""
