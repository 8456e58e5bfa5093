"""The program in place of forward: programs kept per call, the autograd function, models in parts."""
