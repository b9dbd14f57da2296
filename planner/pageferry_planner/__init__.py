"""The pure planner: from what the processes of a job map and where its pages are, to which page goes where, by whom.

The way of the data: `maps` (text → VMAs) → `sharing` (VMAs → backings, each range with one carrier) →
`pages` (page-table entries → runs of unique resident pages) → `policy` (what stays, by which rule) →
`placement` (runs → plan) → `model.Tally` (every page in one bucket). No module here knows a file, a process or a clock.
"""
