"""Batch schedulers, behind one protocol: a job id in, the job's cgroups on this host out."""
