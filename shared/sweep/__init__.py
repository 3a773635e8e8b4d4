"""Many runs on any number of workers: `spec` names a run, `ledger` keeps it, `worker` trains it, `tables` reports it.

The set of expected runs is a function of the experiment files, and what is finished is judged from the two tables.
"""
