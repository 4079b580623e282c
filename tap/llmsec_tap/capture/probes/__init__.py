"""Where probes go: libraries found in processes, functions found in object files, and what is attached for whom.

Reads hostile object files within bounds of its own (elf.py). Imports `ebpf` and `host`, no decoding.
"""
