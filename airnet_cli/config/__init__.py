"""What a user may ask for: the schema of presets, how they are found, mistakes in plain words."""
