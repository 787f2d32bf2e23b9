"""What the configs are made of: the table of settings, the data sets' recipes, and changes by words."""
