"""Capture files: pcap and pcapng are read here, pcapng is written, with credentials masked in place.

Imports no other room of `capture` but the layout of kernel records.
"""
