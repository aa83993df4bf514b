"""The simulated engine as a process: sockets, clock and signals around `core.engine`."""
