"""The test guest: a small virtual machine whose NUMA topology the tests declare.

It boots this host's own root file system, read-only under a memory overlay, so that what is installed here
is what runs there. `python -m guest.vm run -- CMD` (with `tests` on PYTHONPATH) runs one command in it.
"""
