"""Detectors: texts in, findings out. Pure: no files, sockets or clocks, but for the model file that `Scanner` is given."""
