"""Child modules that are replaced by one kernel."""
