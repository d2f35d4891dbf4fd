"""What a network's own code can change while it runs, attributes and random generators: found, noted, put back."""
