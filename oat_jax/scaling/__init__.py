"""What a run costs before it is paid for: compiled programs read, pods planned."""
