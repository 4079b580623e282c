"""The `llmsec-analyze` command: one module per group of commands, each a thin skin over an importable function."""
