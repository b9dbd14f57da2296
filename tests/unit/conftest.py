"""Properties have no time limit of their own: the machines that run them are shared and slow."""

from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
