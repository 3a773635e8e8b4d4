"""What each law expects of (N, D, format, group size) under a budget: `bitlaw plan`, and `plan.plan(Budget(...))`."""
