"""Detection rules as data: the schema of a rule, how files of them are read, and the proof that each does what it says."""
