"""All input: capture files, packet sockets and eBPF probes, and what is asked of the host about processes.

The only room of the tap that reads sockets, files of traffic, /proc and clocks. Feeds a `Pipeline`; imports neither `storage` nor anything
above the library.
"""
