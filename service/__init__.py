"""What a person or a program can ask for: plain functions under every front door, without torch."""
