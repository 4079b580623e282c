"""Where exchanges go: each sink behind a lane (lane.py) of its own. A new one is a file here and a line in run.py."""
