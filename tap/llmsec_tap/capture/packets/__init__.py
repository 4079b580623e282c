"""Packet sockets (AF_PACKET) as a source of a running capture."""
