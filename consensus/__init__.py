"""What agrees: see DESIGN.md."""
