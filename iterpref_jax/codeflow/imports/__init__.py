"""Debugging histories from what others have: reader -> candidates -> sandbox -> verified trajectories.

A reader (one file a form, `forms.FORMS` lists them) turns files into `Candidate`s: a task, its tests, and versions
whose verdicts are claimed at most. `judging` runs every version and keeps what fails first and passes last. `run` does
it for files: durable, reported, and the same bytes for any number of workers.
"""
