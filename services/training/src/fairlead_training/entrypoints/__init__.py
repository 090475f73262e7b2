"""What starts: commands and web applications."""
