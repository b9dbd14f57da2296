"""What can go wrong with the guest itself, as opposed to the command that runs in it."""


class NoGuestError(Exception):
    """This host cannot run the guest: something that it needs is missing. The message is one line."""


class GuestError(Exception):
    """The guest hung, or died before the command's exit code came out."""


class NotBootedError(GuestError):
    """The guest hung before its command began."""
