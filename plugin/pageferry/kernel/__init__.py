"""What pageferry knows of the kernel: readers of /proc, /sys and cgroups, and the calls that move pages."""
