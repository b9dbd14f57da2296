"""pageferry: moves a batch job's memory to its NUMA nodes, each page once, before the job runs again."""

__version__ = "0.1.0"
