"""How much of what is judged by running it the slow tests take."""

import os

# Every such program; ITERPREF_ALL_TASKS=1 takes all of them.
EVERY = 1 if os.environ.get("ITERPREF_ALL_TASKS") else 8
