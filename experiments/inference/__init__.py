"""Uses trained networks: predicts and embeds files, generates pictures, judges them and exports networks."""
