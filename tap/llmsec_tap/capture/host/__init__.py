"""What the host says of a process: /proc, container and pod. Reads, and never attaches or opens a connection of traffic."""
