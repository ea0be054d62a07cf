"""Signals as a user's terminal sends them."""

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""Begins the code of a `python -c`: what a shell starts in the background ignores SIGINT, a user's
does not. Not a `preexec_fn`: with gRPC in this process, a fork may abort before its exec."""
