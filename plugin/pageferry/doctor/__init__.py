"""What of kernel, privileges, cgroups, Slurm and the agent is there, and what to change."""
