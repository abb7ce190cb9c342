"""What kills: see DESIGN.md."""
