"""Studies: what launch files run from end to end."""
