"""The commands and the agent: what puts both libraries together. Configuration, runs, sinks, health and metrics; nothing imports it."""
