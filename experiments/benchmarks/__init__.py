"""What each claim about speed is measured with."""
