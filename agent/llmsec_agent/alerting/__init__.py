"""Alerts on their way out: a process beside the agent that reads them from the store's folder and tells each channel."""
