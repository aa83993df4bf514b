"""The P/D sidecar as a process: sockets, names, clocks."""
