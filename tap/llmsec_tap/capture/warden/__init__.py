"""The privileged process of a capture and the other end of its pipe: it attaches and opens sockets for a decoder that has no rights.

Parses nothing of traffic: imports neither `wire` nor anything above it.
"""
