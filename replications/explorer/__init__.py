"""What the report's explorer shows: every law with its constants, and the pool's runs and cells as points."""
