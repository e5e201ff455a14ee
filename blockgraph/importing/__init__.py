"""From a published config.json to a spec: what its fields mean is data, a file a model type under specs/imports."""
