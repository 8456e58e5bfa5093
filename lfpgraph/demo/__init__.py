"""Training by feedback beside backprop, for `lfpgraph demo` and `lfpgraph train`: the runs, the digits, the report."""
