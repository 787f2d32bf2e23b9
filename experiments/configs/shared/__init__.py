"""Building blocks of the configs: the table of settings, the recipes of data sets, and overrides."""
