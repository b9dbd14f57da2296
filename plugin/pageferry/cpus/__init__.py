"""Which CPUs a job has: its cpusets, its pins, and the one permutation of the host."""
