"""Exit codes of the command beside 0 done, 1 an error, 2 wrong usage and 130 interrupted."""

ASKED_TO_STOP = 75  # EX_TEMPFAIL of sysexits.h: try again; everything is saved
ANOTHER_FAILED = 76  # EX_PROTOCOL, an error of the other side: this process has ended because another one failed
ENDED_BY_SIGTERM = 128 + 15  # as a shell gives it: asked to stop, but the other processes did not come to save
