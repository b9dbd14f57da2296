"""What is done for OpenPBS's events: a hook tells of one, a job's memory follows, and the outcome goes back."""
