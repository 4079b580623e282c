"""Alerts: what a rule of the configuration says that somebody is told, decided where exchanges end and sent by another process."""
