"""Which nodes a job may allocate on: its cpuset.mems, narrowed to where its memory is, and widened again."""
