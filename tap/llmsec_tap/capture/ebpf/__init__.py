"""The kernel half, loaded by libbpf (CO-RE) or bcc behind one `Loader`, and the ring that its records come through.

Knows nothing of processes, selections or flows: it attaches where it is told, and hands on bytes of records.
"""
