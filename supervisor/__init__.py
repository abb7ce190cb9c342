"""What acts: see DESIGN.md."""
